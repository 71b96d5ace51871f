"""Sections of a configuration and their dotted keys: which exist, which is nearest, how one is set."""

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

from cdn_tune.errors import ConfigError
from cdn_tune.model import families

MOST = 10**6  # of whatever is counted or measured: far above what is used, and small enough to be gone through
Positive = Annotated[int, Field(ge=1, le=MOST)]
PositiveTuple = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1, max_length=1000)]
# What other tools call a key, by its last part; and ours, by its end.
SYNONYMS = {
    "learning_rate": "lr", "wd": "weight_decay", "grad_clip": "clip_norm", "max_grad_norm": "clip_norm",
    "optimizer": "optim.name", "optimiser": "optim.name", "scheduler": "schedule", "warmup": "warmup_steps",
    "bs": "train.batch_size", "batch": "train.batch_size", "num_epochs": "epochs", "max_epochs": "epochs",
    "random_seed": "seed",
    "num_layers": "layers", "n_layers": "layers", "hidden_size": "hidden", "hidden_dim": "hidden",
    "amp": "precision", "dtype": "precision", "glove": "word_vectors",
    "n_trials": "trials", "num_trials": "trials", "pruner": "early_stopping", "timeout": "hours",
}  # fmt: skip
_LIKE = 0.6  # share of letters, as of `difflib`, from which a key is taken for another
_SAME_SECTION = 0.1  # what a key of the same section is ahead by


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
    """Returns the known dotted key most like `key`, if one is like it: in its own section or in any other."""
    known = list(dotted_keys(model, family=family))
    section, _, last = key.rpartition(".")
    wanted = SYNONYMS.get(last, last)
    if found := [name for name in known if f".{name}".endswith(f".{wanted}")]:
        return difflib.get_close_matches(key, found, n=1, cutoff=0)[0]

    def likeness(name: str) -> float:
        place, _, leaf = name.rpartition(".")
        alike = difflib.SequenceMatcher(None, leaf, last).ratio()
        if len(last) > 1 and (leaf.startswith(last) or last.startswith(leaf)):
            alike = max(alike, _LIKE)
        return alike + (_SAME_SECTION if section and place == section else 0.0)

    best = max(known, key=likeness)
    if likeness(best) >= _LIKE:
        return best
    close = difflib.get_close_matches(key, known, n=1, cutoff=_LIKE)
    return close[0] if close else None


def unknown_key(model: type[BaseModel], key: str, family: str | None = None) -> str:
    """Returns the error of an unknown key, with the nearest known one; given for a family, with those that have it."""
    if family is not None and (owners := families_with(model, key)):
        return f"{key}: unknown key of the family {family}; with model.name={' or '.join(owners)} it exists"
    near = nearest_key(model, key, family)
    return f"{key}: unknown key; " + (f"did you mean {near}?" if near else f"known are {', '.join(model.model_fields)}")


def copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts anew, for `set_key`; values that are no dicts are shared."""
    return {key: copied(value) if isinstance(value, dict) else value for key, value in values.items()}


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
