"""From a search space's file to the space and its base experiment, both checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdn_tune.config.check import check_key, check_space
from cdn_tune.config.experiment import Experiment
from cdn_tune.config.keys import dotted_keys, set_key, unknown_key
from cdn_tune.config.load import build, load_experiment
from cdn_tune.config.shipped import find
from cdn_tune.config.space import SearchSpace
from cdn_tune.config.yaml import read_mapping
from cdn_tune.errors import ConfigError

# What a search is; the rest of a space says how it is run.
_WRITTEN = ("name", "experiment", "overrides", "parameters", "start_with")


def load_space(
    path: str | Path, overrides: Mapping[str, Any] | None = None, changes: Mapping[str, Any] | None = None
) -> tuple[SearchSpace, Experiment]:
    """Loads a search space and its base experiment, and checks the one against the other.

    Args:
        path: A YAML file, or a shipped one by its path below ``search_spaces/``.
        overrides: Dotted keys of the *experiment* fixed for the whole search.
        changes: Dotted keys of the space itself, as `override_space` takes them; the result is checked.

    Returns:
        The search space, and the base experiment under the space's and the given overrides.

    Raises:
        ConfigError: If a file, a parameter or an override is wrong.
    """
    file = find(path, "search_spaces")
    space = build(SearchSpace, read_mapping(file), str(file))
    for key in space.overrides:
        check_key(f"{file}: overrides", key)
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
    if changes:
        return override_space(space, changes, experiment), experiment
    check_space(space, experiment, str(file))
    return space, experiment


def override_space(
    space: SearchSpace, overrides: Mapping[str, Any], experiment: Experiment | None = None
) -> SearchSpace:
    """Returns the search space that `space` becomes under dotted overrides of its own keys, checked again.

    Args:
        space: The space.
        overrides: Dotted keys of the space, such as ``resources.gpus_per_worker``, and their values.
        experiment: The base experiment under all fixed overrides, to check the result against.

    Raises:
        ConfigError: If a key is unknown or a value is wrong.
    """
    if not overrides:
        return space
    merged = space.plain()
    for key, value in overrides.items():
        if key not in dotted_keys(SearchSpace):
            raise ConfigError(f"--set {key}={value}: {unknown_key(SearchSpace, key)}")
        if key.partition(".")[0] in _WRITTEN:
            raise ConfigError(f"--set {key}={value}: what is searched is written in the file; change {key} there")
        set_key(merged, key, value)
    shown = " ".join(f"{key}={value}" for key, value in overrides.items())
    changed = build(SearchSpace, merged, f"{space.name} with {shown}")
    if experiment is not None:
        check_space(changed, experiment, f"{space.name} with {shown}")
    return changed
