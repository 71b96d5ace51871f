"""`cdn-tune schema`: the JSON Schema of experiments or of search spaces."""

from typing import Annotated

from typer import Argument

from cdn_tune.cli.app import app
from cdn_tune.cli.show.output import print_text
from cdn_tune.errors import ConfigError

_KINDS = ("experiment", "space")


@app.command(epilog="Example: cdn-tune schema space > search_spaces/schema.json")
def schema(kind: Annotated[str, Argument(metavar="experiment|space", help="Of which files.")]) -> None:
    """Print the JSON Schema by which editors complete and check YAML files.

    A file names it in a line `# yaml-language-server: $schema=FILE`, as the shipped ones do.
    """
    from cdn_tune.config.schema import schema_text

    if kind not in _KINDS:
        raise ConfigError(f"schema {kind}: there are two, {' and '.join(_KINDS)}")
    print_text(schema_text(kind))
