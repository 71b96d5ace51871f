"""`cdn-tune schema`."""

from __future__ import annotations

from cdn_tune.cli.show.output import one_line_errors, out
from cdn_tune.config.schema import schema_text
from cdn_tune.errors import ConfigError

_KINDS = ("experiment", "space")


def run_schema(kind: str) -> None:
    """Prints the JSON Schema of experiments or of search spaces."""
    with one_line_errors():
        if kind not in _KINDS:
            raise ConfigError(f"schema {kind}: there are two, {' and '.join(_KINDS)}")
        out.print(schema_text(kind), end="", markup=False, soft_wrap=True)
