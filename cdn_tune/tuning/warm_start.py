"""Learning from another run: its results enter the study before the first trial, for the sampler and the pruner."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from cdn_tune.config import DATA_PATHS, Experiment, SearchSpace, build, override
from cdn_tune.config.keys import flatten, get_keys
from cdn_tune.config.yaml import read_mapping
from cdn_tune.errors import ConfigError, RunError
from cdn_tune.training.runs.run_folder import EXPERIMENT, SPACE, read_manifest
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.study.candidates import Candidates
from cdn_tune.tuning.study.ranking import LEARNED, ROLE, own
from cdn_tune.tuning.study.samplers import to_distribution
from cdn_tune.tuning.study.study import Study

# Keys in which an experiment may differ from another without its result being another.
_BESIDE = (
    "name",
    "seed",
    *DATA_PATHS,
    "train.checkpoint_minutes",
    "eval.batch_size",
)


def learn_from(run: Path, study: Study) -> str:
    """Adds the results of another run's trials to a study that has not begun; returns how many, as a message.

    A result is learned from if its experiment is a point of this search: the same data and measure, equal in every key
    that is not searched here.

    Raises:
        RunError: If the other run is no search, is of other data, or was measured otherwise.
    """
    other = Path(run).absolute()
    manifest = read_manifest(other)
    if manifest["kind"] != "search":
        raise RunError(f"--warm-start {run}: holds a {manifest['kind']} run; name the folder of a search")
    base = study.candidates.base
    theirs = build(Experiment, read_mapping(other / EXPERIMENT), str(other / EXPERIMENT))
    if theirs.eval.metric != base.eval.metric or theirs.data.dataset != base.data.dataset:
        raise RunError(
            f"--warm-start {run}: its trials are chosen by {theirs.eval.metric} on {theirs.data.dataset}, "
            f"this search's by {base.eval.metric} on {base.data.dataset}; results of another measure say nothing"
        )
    space = build(SearchSpace, read_mapping(other / SPACE), str(other / SPACE))
    candidates = Candidates(space, theirs)
    held = {trial.user_attrs.get("learned_from") for trial in study.entries()}
    trials = [
        trial for trial in own(read_record(other).entries) if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    ]
    learned = 0
    same_unit = space.early_stopping.unit == study.space.early_stopping.unit
    for trial in trials:
        origin = f"{other} trial {trial.number}"
        params = _point(candidates.experiment(trial.params).plain(), study.candidates)
        usable = params is not None and (same_unit or trial.state == TrialState.COMPLETE)
        if usable and params is not None and origin not in held and _add(study, trial, params, origin, same_unit):
            learned += 1
    return f"learned from {learned} of the {len(trials)} results in {run}"


def _point(plain: Mapping[str, Any], candidates: Candidates) -> dict[str, Any] | None:
    """Returns an experiment as a point of a search, by Optuna's names; None if it is none."""
    point = candidates.spread(get_keys(plain, candidates.space.parameters))
    if not candidates.is_complete(point):
        return None
    try:
        here = override(candidates.base.plain(), candidates.overrides(point), "").plain()
    except ConfigError:
        return None
    ours, theirs = flatten(here), flatten(plain)
    equal = all(ours[key] == theirs.get(key) for key in ours if not key.startswith(_BESIDE))
    return point if equal else None


def _add(study: Study, trial: FrozenTrial, params: dict[str, Any], origin: str, same_unit: bool) -> bool:
    """Adds one result; returns whether it has a value of every objective."""
    values = None
    if trial.state == TrialState.COMPLETE:
        reached = max(trial.intermediate_values.values())
        found = study.objectives.values(trial, reached)
        if any(value is None for value in found.values()):
            return False
        values = [value for value in found.values() if value is not None]
    kept = ("val", "best_epoch", "epoch", "epochs", "parameters", "memory_gb")
    copied: dict[str, Any] = {key: trial.user_attrs[key] for key in kept if key in trial.user_attrs}
    study.optuna.add_trial(
        create_trial(
            state=trial.state,
            values=values,
            params=params,
            distributions={name: to_distribution(study.space.parameters[name.partition("[")[0]]) for name in params},
            intermediate_values=dict(trial.intermediate_values) if same_unit else {},
            user_attrs={**copied, ROLE: LEARNED, "learned_from": origin},
        )
    )
    return True
