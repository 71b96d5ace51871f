"""Dotted keys of a configuration: which exist, which is nearest, and how one is set."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from cdn_tune.errors import ConfigError


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yields every dotted key of a configuration model, sections before their members."""
    for name, field in model.model_fields.items():
        yield prefix + name
        section = section_of(field.annotation)
        if section is not None:
            yield from dotted_keys(section, f"{prefix}{name}.")


def leaf_keys(model: type[BaseModel]) -> list[str]:
    """Returns the dotted keys that hold a value: all but the sections."""
    known = list(dotted_keys(model))
    return [key for key in known if not any(other.startswith(f"{key}.") for other in known)]


def nearest_key(model: type[BaseModel], key: str) -> str | None:
    """Returns the known dotted key most like `key`: by its last part, in its section, by full path."""
    known = list(dotted_keys(model))
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


def unknown_key(model: type[BaseModel], key: str) -> str:
    """Returns the words that tell a user the key does not exist, with the nearest one that does."""
    near = nearest_key(model, key)
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


def get_key(values: Mapping[str, Any], key: str) -> Any:
    """Returns the value under a dotted key of nested dicts."""
    inner: Any = values
    for part in key.split("."):
        inner = inner[part]
    return inner


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dicts as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Returns the configuration model that a field's type is, or is an optional of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        sections = [section for section in map(section_of, get_args(annotation)) if section is not None]
        return sections[0] if len(sections) == 1 else None
    return None
