"""From a search space's file to the space and its base experiment, both checked."""

from __future__ import annotations

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

# Keys of a space that KEY=VALUE arguments do not reach: what is searched is written in the file.
_WRITTEN = ("name", "experiment", "overrides", "parameters", "start_with")


def load_space(path: str | Path, overrides: Mapping[str, Any] | None = None) -> tuple[SearchSpace, Experiment]:
    """Loads a search space and its base experiment, and checks the one against the other.

    Args:
        path: A YAML file, or a shipped one by its path below ``search_spaces/``.
        overrides: Dotted keys of the *experiment* fixed for the whole search; and of the space itself, such as
            ``resources.gpus_per_worker`` or ``sampler.seed``, in place of what the file says.

    Returns:
        The search space, and the base experiment under the space's and the given overrides.

    Raises:
        ConfigError: If a file, a parameter or an override is wrong.
    """
    file = find(path, "search_spaces")
    written = read_mapping(file)
    fixed: dict[str, Any] = {}
    replaced: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        (replaced if _is_of_space(key) else fixed)[key] = value
    for key, value in replaced.items():
        if key not in dotted_keys(SearchSpace):
            raise ConfigError(f"override {key}={value}: {unknown_key(SearchSpace, key)}")
        set_key(written, key, value)
    shown = " ".join(f"{key}={value}" for key, value in replaced.items())
    space = build(SearchSpace, written, f"{file} with {shown}" if shown else str(file))
    for key in space.overrides:
        check_key(f"{file}: overrides", key)
    fixed = {**space.overrides, **fixed}
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


def _is_of_space(key: str) -> bool:
    """Whether a dotted key is the search space's own, such as ``trials`` or one of ``resources``."""
    section = key.partition(".")[0]
    return section in SearchSpace.model_fields and section not in (*_WRITTEN, *Experiment.model_fields)
