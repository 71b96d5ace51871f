"""The reference of all keys, as docs/reference/configuration.md shows it: ``python -m cdn_tune.config.reference``."""

import sys
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cdn_tune.config.experiment import Experiment
from cdn_tune.config.keys import section_of
from cdn_tune.config.space import SearchSpace
from cdn_tune.config.tables import Table
from cdn_tune.model import families


def reference(model: type[BaseModel]) -> str:
    """Returns a markdown table of a configuration's keys, defaults and meanings."""
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *_rows(model, "")])


def _rows(model: type[BaseModel], prefix: str, of: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        variants = () if section is None else section.variants()
        for variant, family in zip(variants, families.known(), strict=False):
            yield from _rows(variant, f"{prefix}{name}.", f"*{family}*: " if len(variants) > 1 else of)
        if section is None:
            yield f"| `{prefix}{name}` | {_default(field)} | {of}{_meaning(field)} |"


def _meaning(field: FieldInfo) -> str:
    tables = [item.describe() for item in field.metadata if isinstance(item, Table)]
    return (field.description or "".join(tables)).replace("<", "&lt;")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    value: Any = field.get_default(call_default_factory=True)
    if value is None:
        return "*unset*"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


if __name__ == "__main__":
    sys.stdout.write(f"{reference(Experiment)}\n\n{reference(SearchSpace)}\n")
