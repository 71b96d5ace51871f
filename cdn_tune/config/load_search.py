"""Loads a search space: its file, what is fixed for the whole search, and its own settings, checked together."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdn_tune.config.check import FAMILY, check_key, check_space, most, searched_families
from cdn_tune.config.experiment import Experiment
from cdn_tune.config.keys import dotted_keys, families_with, set_key, unknown_key
from cdn_tune.config.load import ExperimentLike, build, checked_overrides, load_experiment, read_values
from cdn_tune.config.space import SearchSpace
from cdn_tune.errors import ConfigError

SpaceLike = SearchSpace | Mapping[str, Any] | str | os.PathLike[str]
# What a search is; the other sections set how it is run.
WRITTEN = ("name", "experiment", "overrides", "family_overrides", "parameters", "start_with")
_UNSTOPPED = 0.4  # share of the shortest trial's epochs


def load_space(
    source: SpaceLike,
    overrides: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    experiment: ExperimentLike | None = None,
) -> tuple[SearchSpace, Experiment]:
    """Returns a search space, checked and complete, and its base experiment under all overrides.

    Args:
        source: A YAML file, or a shipped one by its path below ``search_spaces/``; its nested values; or a space.
        overrides: Dotted keys of the *experiment* fixed for the whole search.
        changes: Dotted keys of the space itself, as `override_space` takes them.
        experiment: The base experiment, as `load_experiment` takes it, in place of the one that the space names.

    Raises:
        ConfigError: If a file, a parameter or an override is wrong.
    """
    space, base = read_space(source, overrides, changes, experiment)
    return with_min_resource(space, base.train.epochs), base


def read_space(
    source: SpaceLike,
    overrides: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    experiment: ExperimentLike | None = None,
) -> tuple[SearchSpace, Experiment]:
    """Returns a search space as it is written, checked, and its base experiment; `with_min_resource` completes it.

    Arguments and errors are those of `load_space`.
    """
    overrides = checked_overrides(overrides or {})
    base = None if experiment is None else load_experiment(experiment)
    space, origin, folder = _read(source, base)
    for key in space.overrides:
        check_key(f"{origin}: overrides", key)
    changes = checked_overrides(changes or {}, "settings")
    if isinstance(section := changes.get("tracking"), Mapping):
        del changes["tracking"]
        changes |= {f"tracking.{key}": value for key, value in section.items()}
    tracking = {f"tracking.{key}": value for key, value in space.tracking.model_dump(exclude_unset=True).items()}
    tracking |= {key: changes.pop(key) for key in list(changes) if key.startswith("tracking.")}
    fixed = {**space.overrides, **overrides}
    for key in fixed:
        if key in space.parameters:
            raise ConfigError(
                f"override {key}={fixed[key]}: {origin} searches over this key; "
                "drop the override, or remove the key from parameters"
            )
    fixed = {**tracking, **fixed}
    if base is None:
        relative = folder / space.experiment
        base = load_experiment(relative if relative.exists() else space.experiment, fixed)
    else:
        base = load_experiment(base, fixed)
    space = _fixed_in_all(space, overrides, base.model.name)
    if changes:
        return override_space(space, changes, base), base
    check_space(space, base, origin)
    return space, base


def _read(source: SpaceLike, base: Experiment | None) -> tuple[SearchSpace, str, Path]:
    """Returns a space, over `base` if one is given, its origin, and the folder from which it names its experiment."""
    values: dict[str, Any]
    if isinstance(source, SearchSpace):
        values, origin = source.plain() | {"tracking": source.tracking.model_dump(exclude_unset=True)}, source.name
    else:
        values, origin = read_values(source, "search_spaces", "a SearchSpace")
    if base is not None:
        values["experiment"] = base.name
    folder = Path() if isinstance(source, SearchSpace | Mapping) else Path(origin).parent
    return build(SearchSpace, values, origin), origin, folder


def with_min_resource(space: SearchSpace, epochs: int) -> SearchSpace:
    """Returns a space that says what every trial gets before any is stopped; unset, it is a share of the epochs.

    Over the first epochs learning curves cross (docs/explanation/search-figures.md has the figures).
    """
    stopping = space.early_stopping
    if stopping.min_resource is not None or stopping.unit != "epoch" or stopping.name == "none":
        return space
    shortest = -most(space, "train.epochs", epochs, sign=-1)
    changed = stopping.model_copy(update={"min_resource": math.ceil(_UNSTOPPED * shortest)})
    return space.model_copy(update={"early_stopping": changed})


def _fixed_in_all(space: SearchSpace, overrides: Mapping[str, Any], base: str) -> SearchSpace:
    """Returns a space in which what is fixed for the whole search is so in every family that has the key.

    The base experiment has it already. Other families begin with their defaults in `model` and `loss`: there it joins
    what the file fixes for each, which precedes the space's own `overrides` and gives way to those of the command line.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys((*searched_families(space, base), *space.family_overrides)):
        written = {key: value for key, value in space.family_overrides.get(name, {}).items() if key not in overrides}
        for key, value in {**space.overrides, **overrides}.items() if name != base else ():
            if key.startswith(("model.", "loss.")) and key != FAMILY and name in families_with(Experiment, key):
                written.setdefault(key, value)
        if written or name in space.family_overrides:
            found[name] = written
    return space.model_copy(update={"family_overrides": found})


def override_space(
    space: SearchSpace, overrides: Mapping[str, Any], experiment: Experiment | None = None
) -> SearchSpace:
    """Returns the search space that `space` becomes under dotted overrides of its own keys, checked again.

    Args:
        space: The space.
        overrides: Dotted keys of the space, such as ``resources.gpus_per_worker``, and their values.
        experiment: The base experiment under all fixed overrides; without it the result is not checked against one.

    Raises:
        ConfigError: If a key is unknown or a value is wrong.
    """
    if not overrides:
        return space
    merged = space.plain()
    for key, value in overrides.items():
        if key not in dotted_keys(SearchSpace):
            raise ConfigError(f"--set {key}={value}: {unknown_key(SearchSpace, key)}")
        if key.partition(".")[0] in WRITTEN:
            raise ConfigError(f"--set {key}={value}: what is searched is written in the file; change {key} there")
        set_key(merged, key, value)
    source = f"{space.name} with {' '.join(f'{key}={value}' for key, value in overrides.items())}"
    changed = build(SearchSpace, merged, source)
    if experiment is not None:
        check_space(changed, experiment, source)
    return changed
