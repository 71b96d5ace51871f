"""From files and overrides to frozen configurations, with errors that name file, key, value and remedy."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml as pyyaml
from pydantic import BaseModel, ValidationError

from cdn_tune.config.experiment import Experiment, renamed
from cdn_tune.config.keys import copied, dotted_keys, set_key, unknown_key
from cdn_tune.config.parameters import Categorical, Float, Int
from cdn_tune.config.secrets import without_users
from cdn_tune.config.yaml import beginning, fault_in, parse, read_mapping, shown
from cdn_tune.errors import ConfigError
from cdn_tune.model import families
from cdn_tune.resources import ROOT

Model = TypeVar("Model", bound=BaseModel)

_KINDS: dict[str, type[BaseModel]] = {"float": Float, "int": Int, "categorical": Categorical}
_TYPES = {  # what other tools call them
    "integer": "int", "real": "float", "double": "float", "number": "float", "uniform": "float",
    "loguniform": "float", "choice": "categorical", "enum": "categorical", "bool": "categorical",
}  # fmt: skip
# What an experiment is given as: itself, nested values, or the path of a YAML file or of a shipped one.
ExperimentLike = Experiment | Mapping[str, Any] | str | os.PathLike[str]
_COMMA = re.compile(r"[-+]?\d+,\d+(e[-+]?\d+)?", re.IGNORECASE)
_TOLD = 5  # findings that are told at once
_LONGEST = 200  # characters of overrides, or of a path, that errors name


def find(path: str | Path, kind: str) -> Path:
    """Returns the path of a configuration file: as given, else among the shipped ones.

    Args:
        path: With or without ``.yaml``; relative to the working folder, or to the shipped `kind` folder.
        kind: ``experiments`` or ``search_spaces``.

    Raises:
        ConfigError: If there is no such file, naming what is shipped.
    """
    try:
        for base in (Path(), ROOT, ROOT / kind):
            for candidate in (base / path, base / f"{path}.yaml"):
                if candidate.is_file():
                    return candidate
        if Path(path).is_dir():
            raise ConfigError(f"{path}: is a folder; name the YAML file in it")
    except OSError as error:  # such as a name that is too long
        raise ConfigError(f"{beginning(str(path), _LONGEST)}: cannot be read ({error.strerror}); name a file") from None
    shipped = sorted(str(file.relative_to(ROOT)) for file in (ROOT / kind).rglob("*.yaml"))
    raise ConfigError(f"{path}: no such file; shipped are {', '.join(shipped) or 'none'}")


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """Returns ``key=value`` arguments as a dict; values are YAML, such as ``[1, 5]``, ``1e-4`` and ``true``.

    Raises:
        ConfigError: If an argument is not of that form.
    """
    overrides: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {shown(argument)}: write it as key=value, for example optim.lr=3e-4")
        try:
            overrides[key.strip()] = parse(text)
        except pyyaml.YAMLError as error:
            raise ConfigError(f"override {shown(argument)}: not valid YAML: {fault_in(error)}; quote it") from None
    return overrides


def build(model: type[Model], values: Mapping[str, Any], source: str) -> Model:
    """Returns the configuration that nested plain values describe; errors name `source`, usually the file.

    Raises:
        ConfigError: If a key is unknown or a value is wrong; one line each.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        lines = _explain(model, error, families.name_in(values) if model is Experiment else None)
        raise ConfigError(without_users("\n".join(f"{source}: {line}" for line in lines))) from None


def load_experiment(source: ExperimentLike, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Returns an experiment under dotted overrides.

    Args:
        source: A YAML file, or a shipped one by its path below ``experiments/``; its nested values; or an experiment.
        overrides: Dotted keys and their values, such as ``{"optim.lr": 3e-4}``; paths may be `Path`.

    Raises:
        ConfigError: If the file or an override is wrong.
    """
    if isinstance(source, Experiment):
        return override(source.plain() | {"tracking": source.tracking.plain()}, overrides or {}, source.name)
    values, origin = read_values(source, "experiments", "an Experiment")
    return override(values, overrides or {}, origin)


def read_values(source: object, kind: str, instead: str) -> tuple[dict[str, Any], str]:
    """Returns nested values, read from a YAML file unless given, and the origin that errors name.

    Args:
        source: The values, or the file's path, as `find` takes it.
        kind: ``experiments`` or ``search_spaces``.
        instead: What else a caller takes, in words.

    Raises:
        ConfigError: If the file is wrong, or `source` is anything else.
    """
    if isinstance(source, Mapping):
        return written(source), kind[:-1].replace("_", " ")
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise ConfigError(
            f"{kind[:-1].replace('_', ' ')}: {shown(source)} is wrong: give the path of a YAML file, nested values as "
            f"it would hold them, or {instead}"
        )
    file = find(os.fspath(source), kind)
    return read_mapping(file), str(file)


def written(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested values as a file would hold them: paths as text."""
    return {
        key: written(value) if isinstance(value, Mapping) else os.fspath(value) if isinstance(value, Path) else value
        for key, value in values.items()
    }


def override(values: Mapping[str, Any], overrides: Mapping[str, Any], source: str) -> Experiment:
    """Returns the experiment that `values` become under dotted overrides.

    Where ``model.name`` becomes another family, the values of the sections `model` and `loss` go: they are the new
    family's defaults, but for what is overridden.

    Raises:
        ConfigError: If an override's key is unknown or the result is not a valid experiment.
    """
    overrides = checked_overrides(overrides)
    merged = copied(values)
    if overrides.get("model.name", name := families.name_in(values)) != name:
        merged |= {"model": {}, "loss": {}}
    known = _known(*families.known().items()) if overrides else frozenset()  # loads all families
    for key, value in (renamed(*item) for item in overrides.items()):
        if key not in known:
            told = without_users(shown(value))
            raise ConfigError(f"{source}: override {key}={told}: {unknown_key(Experiment, key)}")
        set_key(merged, key, value)
    changes = beginning(" ".join(f"{key}={value}" for key, value in overrides.items()), _LONGEST)
    return build(Experiment, merged, f"{source} with {changes}" if changes else source)


def checked_overrides(overrides: object, what: str = "overrides") -> dict[str, Any]:
    """Returns overrides as a file would hold their values.

    Raises:
        ConfigError: If they are no mapping of dotted keys; names `what` was given.
    """
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise ConfigError(f"{what}: {shown(overrides)} is wrong: give dotted keys with values, as {{'optim.lr': 3e-4}}")
    return written(overrides)


@lru_cache(maxsize=1)
def _known(*table: tuple[str, str]) -> frozenset[str]:  # noqa: ARG001 - the table of families, from which they follow
    """Returns the dotted keys of an experiment."""
    return frozenset(dotted_keys(Experiment))


def of_family(values: Mapping[str, Any], name: str, fixed: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Returns an experiment's nested values with the defaults of a family, unless they are of that family already.

    `fixed` are dotted keys with other values.
    """
    if name != families.name_in(values):
        family = families.family(name)
        values = {**values, "model": family().plain(), "loss": family.loss().plain()}
    if not fixed:
        return values
    merged = copied(values)
    for key, value in fixed.items():
        set_key(merged, key, value)
    return merged


def _explain(model: type[BaseModel], error: ValidationError, family: str | None) -> list[str]:
    """Returns pydantic's findings as lines ``key: what is wrong and what is expected``, one per key."""
    lines: dict[str, str] = {}
    for finding in error.errors(include_url=False):
        if finding["type"] == "default_factory_not_called":
            continue  # a section whose default depends on another, of which there is a line
        key = ".".join(str(part) for part in finding["loc"] if not _is_union_branch(part))
        value = finding.get("input")
        message = finding["msg"][:1].lower() + finding["msg"][1:]
        if finding["type"] == "extra_forbidden":
            line = _unknown(model, key, finding["loc"], family)
        elif finding["type"] == "union_tag_not_found":
            line = f"{key}: type is missing; write type: float, int or categorical"
        elif finding["type"] == "union_tag_invalid":
            line = f"{key}.type: {_no_type(finding['ctx']['tag'])}"
        elif finding["type"] == "missing":
            line = f"{key}: missing; add it (or pass {key}=VALUE)"
        elif finding["type"] == "value_error":
            line = ": ".join(filter(None, [key, finding["msg"].removeprefix("Value error, ")]))
        elif finding["type"] == "model_type":
            line = f"{key}: {shown(value)} is wrong: a section with keys of its own is expected"
        elif key in lines:  # another branch of a union
            line = f"{lines[key]}, or {message.removeprefix('input should be ')}"
        else:
            line = f"{key}: {shown(value)} is wrong: {message}"
            if isinstance(value, str) and _COMMA.fullmatch(value):
                line += f"; the decimal sign is a point: {value.replace(',', '.')}"
        lines[key] = line
    told = list(lines.values())
    return told if len(told) <= _TOLD else [*told[:_TOLD], f"and {len(told) - _TOLD} more like these"]


def _no_type(tag: str) -> str:
    """Returns the error of a parameter's type that does not exist."""
    near = _TYPES.get(tag) or next(iter(difflib.get_close_matches(tag, _KINDS, n=1)), None)
    mend = f"did you mean {near}?" if near else "write float, int or categorical"
    return f"{shown(tag)} is wrong: no such type; {mend}"


def _unknown(model: type[BaseModel], key: str, location: tuple[str | int, ...], family: str | None) -> str:
    """Returns the error of an unknown key; the keys of a search space's parameters depend on their type."""
    kind = _KINDS.get(str(location[2])) if location[0] == "parameters" and len(location) > 3 else None
    if kind is None:
        return unknown_key(model, key, family)
    near = difflib.get_close_matches(str(location[3]), kind.model_fields, n=1)
    mend = f"did you mean {near[0]}?" if near else f"{location[2]} takes {', '.join(kind.model_fields)}"
    return f"{key}: unknown key; {mend}"


def _is_union_branch(part: str | int) -> bool:
    """Returns whether part of an error's location is a union's branch: pydantic adds it, and users do not write it."""
    kinds = ("float", "int", "categorical", "bool", "str", "none")
    return part in kinds or str(part).startswith(("constrained-", "literal[", "tuple["))
