"""Dotted keys of a configuration: which exist, which is nearest, and how one is set."""

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from cdn_tune.config.base import Frozen
from cdn_tune.errors import ConfigError
from cdn_tune.model import families


def dotted_keys(model: type[BaseModel], prefix: str = "", family: str | None = None) -> Iterator[str]:
    """Yields every dotted key of a configuration model once, sections before their members.

    Args:
        model: The configuration model.
        prefix: What every key begins with.
        family: Only the keys of this model family, where a section differs between families; of all if None.
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
    same_leaf = [name for name in known if name.rpartition(".")[2] == last]
    if same_leaf:
        return difflib.get_close_matches(key, same_leaf, n=1, cutoff=0)[0]
    section = key.rpartition(".")[0]
    beside = {name.rpartition(".")[2]: name for name in known if section and name.rpartition(".")[0] == section}
    close = difflib.get_close_matches(last, beside, n=1, cutoff=0.4)
    if close:
        return beside[close[0]]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return close[0]
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    close = difflib.get_close_matches(last, leaves, n=1, cutoff=0.6)
    return leaves[close[0]] if close else None


def unknown_key(model: type[BaseModel], key: str, family: str | None = None) -> str:
    """Returns a line that a key does not exist, with the nearest one that does, or the family that has it.

    Args:
        model: The configuration model.
        key: The dotted key.
        family: The model family it was given for; any if None.
    """
    if family is not None and (owners := families_with(model, key)):
        return f"{key}: unknown key of the family {family}; with model.name={owners[0]} it exists"
    near = nearest_key(model, key, family)
    return f"{key}: unknown key" + (
        f"; did you mean {near}?" if near else f"; known are {', '.join(model.model_fields)}"
    )


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
    inner: Any = values
    for part in key.split("."):
        if not isinstance(inner, Mapping) or part not in inner:
            return absent
        inner = inner[part]
    return inner


def get_keys(values: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, Any]:
    """Returns the values under those of some dotted keys that nested dicts have."""
    absent = object()
    found = {key: get_key(values, key, absent) for key in wanted}
    return {key: value for key, value in found.items() if value is not absent}


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
