"""Sections of a configuration and their dotted keys: which exist, which is nearest, how one is set."""

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

from cdn_tune.errors import ConfigError
from cdn_tune.model import families

Positive = Annotated[int, Field(ge=1)]
PositiveTuple = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]


class Frozen(BaseModel):
    """A configuration section: unknown keys and wrong types are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)

    def plain(self) -> dict[str, Any]:
        """Returns the section as plain dicts, lists, numbers and strings, ready for YAML or JSON."""
        return self.model_dump(mode="json")

    @classmethod
    def variants(cls, family: str | None = None) -> Sequence[type["Frozen"]]:  # noqa: ARG003 - for sections of a family
        """Returns the sections allowed where this one is declared: itself, or those of all model families or of one."""
        return (cls,)


def dotted_keys(model: type[BaseModel], prefix: str = "", family: str | None = None) -> Iterator[str]:
    """Yields every dotted key of a configuration model once, behind `prefix`, sections before their members.

    Where a section differs between model families, only the keys of `family` are yielded; those of all if None.
    """
    found: dict[str, None] = {}
    for name, field in model.model_fields.items():
        found[prefix + name] = None
        section = section_of(field.annotation)
        for variant in () if section is None else section.variants(family):
            found |= dict.fromkeys(dotted_keys(variant, f"{prefix}{name}.", family))
    yield from found


def leaf_keys(model: type[BaseModel]) -> list[str]:
    """Returns the dotted keys that hold a value: all but the sections."""
    known = list(dotted_keys(model))
    return [key for key in known if not any(other.startswith(f"{key}.") for other in known)]


def families_with(model: type[BaseModel], key: str) -> list[str]:
    """Returns the model families in which a dotted key exists."""
    return [name for name in families.known() if key in dotted_keys(model, family=name)]


def nearest_key(model: type[BaseModel], key: str, family: str | None = None) -> str | None:
    """Returns the known dotted key most like `key`: by its last part, in its section, by full path."""
    known = list(dotted_keys(model, family=family))
    last = key.rpartition(".")[2]
    if same_leaf := [name for name in known if name.rpartition(".")[2] == last]:
        return difflib.get_close_matches(key, same_leaf, n=1, cutoff=0)[0]
    section = key.rpartition(".")[0]
    beside = {name.rpartition(".")[2]: name for name in known if section and name.rpartition(".")[0] == section}
    if close := difflib.get_close_matches(last, beside, n=1, cutoff=0.4):
        return beside[close[0]]
    if close := difflib.get_close_matches(key, known, n=1, cutoff=0.6):
        return close[0]
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    close = difflib.get_close_matches(last, leaves, n=1, cutoff=0.6)
    return leaves[close[0]] if close else None


def unknown_key(model: type[BaseModel], key: str, family: str | None = None) -> str:
    """Returns the error of an unknown key, with the nearest known one; given for a family, with one that has it."""
    if family is not None and (owners := families_with(model, key)):
        return f"{key}: unknown key of the family {family}; with model.name={owners[0]} it exists"
    near = nearest_key(model, key, family)
    return f"{key}: unknown key; " + (f"did you mean {near}?" if near else f"known are {', '.join(model.model_fields)}")


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key in nested dicts, in place.

    Raises:
        ConfigError: If a part of the path already holds a plain value.
    """
    *path, last = key.split(".")
    for depth, part in enumerate(path):
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {'.'.join(path[: depth + 1])} is a value, not a section")
        values = inner
    values[last] = value


def get_key(values: Mapping[str, Any], key: str, absent: Any = None) -> Any:
    """Returns the value under a dotted key of nested dicts, `absent` if there is none."""
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return absent
        values = values[part]
    return values


def get_keys(values: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, Any]:
    """Returns the values under those of some dotted keys that nested dicts have."""
    absent = object()
    return {key: value for key in wanted if (value := get_key(values, key, absent)) is not absent}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dicts as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def section_of(annotation: Any) -> type[Frozen] | None:
    """Returns the configuration model that a field's type is, or is an optional of."""
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return annotation
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        sections = [section for section in map(section_of, get_args(annotation)) if section is not None]
        return sections[0] if len(sections) == 1 else None
    return None
