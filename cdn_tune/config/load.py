"""From files and overrides to frozen configurations, with errors that name file, key, value and remedy."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml as pyyaml
from pydantic import BaseModel, ValidationError

from cdn_tune.config.experiment import Experiment
from cdn_tune.config.keys import dotted_keys, set_key, unknown_key
from cdn_tune.config.shipped import find
from cdn_tune.config.space import SearchSpace
from cdn_tune.config.yaml import parse, read_mapping
from cdn_tune.errors import ConfigError

# What every trial of a search must share: the data it is measured on, and the measure.
COMPARED = ("name", "eval.", "data.dataset", "data.root", "data.features", "data.val_fraction")

Model = TypeVar("Model", bound=BaseModel)


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """Parses ``key=value`` arguments; values are YAML, so ``[1, 5]``, ``1e-4`` and ``true`` mean what they say.

    Raises:
        ConfigError: If an argument is not of that form.
    """
    overrides: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {argument!r}: write it as key=value, for example optim.lr=3e-4")
        try:
            overrides[key.strip()] = parse(text)
        except pyyaml.YAMLError:
            raise ConfigError(f"override {argument!r}: the value is not valid YAML; quote it") from None
    return overrides


def build(model: type[Model], values: Mapping[str, Any], source: str) -> Model:
    """Builds a configuration from nested values.

    Args:
        model: The configuration model.
        values: Nested plain values.
        source: What errors name as their origin, usually the file.

    Raises:
        ConfigError: If a key is unknown or a value is wrong; one line each.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {line}" for line in _explain(model, error))) from None


def load_experiment(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Loads an experiment file and applies dotted overrides.

    Args:
        path: A YAML file, or a shipped one by its path below ``experiments/``.
        overrides: Dotted keys and their values.

    Raises:
        ConfigError: If the file or an override is wrong.
    """
    file = find(path, "experiments")
    return override(read_mapping(file), overrides or {}, str(file))


def override(values: Mapping[str, Any], overrides: Mapping[str, Any], source: str) -> Experiment:
    """Returns the experiment that `values` become under dotted overrides.

    Raises:
        ConfigError: If an override's key is unknown or the result is not a valid experiment.
    """
    merged = copy.deepcopy(dict(values))
    known = set(dotted_keys(Experiment))
    for key, value in overrides.items():
        if key not in known:
            raise ConfigError(f"{source}: override {key}={value}: {unknown_key(Experiment, key)}")
        set_key(merged, key, value)
    shown = " ".join(f"{key}={value}" for key, value in overrides.items())
    return build(Experiment, merged, f"{source} with {shown}" if shown else source)


def load_space(path: str | Path, overrides: Mapping[str, Any] | None = None) -> tuple[SearchSpace, Experiment]:
    """Loads a search space and its base experiment, and checks every parameter's values against the experiment.

    Args:
        path: A YAML file, or a shipped one by its path below ``search_spaces/``.
        overrides: Dotted keys of the *experiment* fixed for the whole search.

    Returns:
        The search space, and the base experiment under the space's and the given overrides.

    Raises:
        ConfigError: If a file, a parameter or an override is wrong.
    """
    file = find(path, "search_spaces")
    space = build(SearchSpace, read_mapping(file), str(file))
    fixed = {**space.overrides, **(overrides or {})}
    for key in fixed:
        if key in space.parameters:
            raise ConfigError(
                f"override {key}={fixed[key]}: {file} searches over this key; "
                "drop the override, or remove the key from parameters"
            )
    base = Path(space.experiment)
    relative = file.parent / base
    experiment = load_experiment(relative if relative.exists() else base, fixed)
    check_space(space, experiment, str(file))
    return space, experiment


def override_space(space: SearchSpace, overrides: Mapping[str, Any]) -> SearchSpace:
    """Returns the search space that `space` becomes under dotted overrides of its own keys.

    Raises:
        ConfigError: If a key is unknown or a value is wrong.
    """
    if not overrides:
        return space
    merged = space.plain()
    known = set(dotted_keys(SearchSpace))
    for key, value in overrides.items():
        if key not in known:
            raise ConfigError(f"--set {key}={value}: {unknown_key(SearchSpace, key)}")
        set_key(merged, key, value)
    shown = " ".join(f"{key}={value}" for key, value in overrides.items())
    return build(SearchSpace, merged, f"{space.name} with {shown}")


def check_space(space: SearchSpace, experiment: Experiment, source: str) -> None:
    """Refuses a parameter that is unknown, or has a value no trial could use.

    A value that does not fit the base experiment is accepted if changing one other parameter mends it: 2 layers do
    not go with the base's 4 dynamic ones, but do with the 1 or 2 that the space searches over.

    Raises:
        ConfigError: Naming the first wrong parameter and value.
    """
    base = experiment.plain()
    known = set(dotted_keys(Experiment))
    for key in space.parameters:
        if key not in known:
            raise ConfigError(f"{source}: parameters.{unknown_key(Experiment, key)}")
        if key.startswith(COMPARED):
            raise ConfigError(
                f"{source}: parameters.{key}: trials that differ in it cannot be compared; put it in overrides"
            )
    for key, parameter in space.parameters.items():
        others = [
            (other, probe) for other in space.parameters if other != key for probe in space.parameters[other].probes
        ]
        for value in parameter.probes:
            try:
                override(base, {key: value}, source)
            except ConfigError:
                if not any(_fits(base, {key: value, other: probe}) for other, probe in others):
                    raise
    for point in space.start_with or ():
        override(base, point, f"{source}: start_with")


def _fits(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> bool:
    try:
        override(base, overrides, "")
    except ConfigError:
        return False
    return True


def _explain(model: type[BaseModel], error: ValidationError) -> list[str]:
    """Turns pydantic's findings into lines ``key: what is wrong and what is expected``, one per key."""
    lines: dict[str, str] = {}
    for finding in error.errors(include_url=False):
        key = ".".join(str(part) for part in finding["loc"] if not _is_union_branch(part))
        value = finding.get("input")
        message = finding["msg"][:1].lower() + finding["msg"][1:]
        if finding["type"] == "extra_forbidden":
            line = unknown_key(model, key)
        elif finding["type"] == "missing":
            line = f"{key}: missing; add it (or pass {key}=VALUE)"
        elif finding["type"] == "value_error":
            line = ": ".join(filter(None, [key, finding["msg"].removeprefix("Value error, ")]))
        elif finding["type"] == "model_type":
            line = f"{key}: {value!r} is wrong: a section with keys of its own is expected"
        elif key in lines:  # another branch of a union
            line = f"{lines[key]}, or {message.removeprefix('input should be ')}"
        else:
            line = f"{key}: {value!r} is wrong: {message}"
        lines[key] = line
    return list(lines.values())


def _is_union_branch(part: str | int) -> bool:
    """Pydantic adds the tried branch of a union to an error's location; users do not write that."""
    if isinstance(part, int):
        return False
    return part in {"float", "int", "categorical", "bool", "str", "none"} or part.startswith(("constrained-", "tuple["))
