"""Learning from other runs: their results enter the study before the first trial, for the sampler."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from cdn_tune.config import COMPUTING, DATA_PATHS, Experiment, SearchSpace, build, override
from cdn_tune.config.keys import flatten, get_keys
from cdn_tune.config.yaml import read_mapping
from cdn_tune.data.videos.making import Making, from_plain
from cdn_tune.errors import ConfigError, RunError
from cdn_tune.model.families import layers_key
from cdn_tune.training.runs.run_folder import EXPERIMENT, SPACE, read_manifest
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.study.candidates import Candidates
from cdn_tune.tuning.study.ranking import LEARNED, ROLE, VALUED, own
from cdn_tune.tuning.study.samplers import to_distribution
from cdn_tune.tuning.study.study import Study

# Keys in which an experiment may differ from another without its result being another.
_BESIDE = (
    "name",
    "seed",
    *DATA_PATHS,
    *COMPUTING,
    "train.checkpoint",
    "eval.batch_size",
)


@dataclass(frozen=True)
class _Earlier:
    """The results of another run, and which keys it searched."""

    run: Path  # as the user names it
    folder: Path
    space: SearchSpace
    candidates: Candidates
    trials: list[FrozenTrial]


@dataclass(frozen=True)
class _Point:
    """A result of another run as a point of this search, whole or in part; why it is none, if so."""

    params: dict[str, Any] = field(default_factory=dict)  # by Optuna's names
    missing: frozenset[str] = frozenset()  # parameters of this search that it has no value for
    fixed: frozenset[str] = frozenset()  # keys at other values than here, which the other run searched
    fault: str | None = None


def learn_from(runs: Sequence[Path], study: Study, making: Making | None = None) -> list[str]:
    """Adds the results of other runs' trials to a study that has not begun; returns a line for each run.

    All runs are checked before anything is added. A result is learned from if it is of the same data and measure, and
    equal in every key that neither search varies. What it has of this search's parameters counts; a parameter that it
    has no value for, or one outside of the range here, is left to the sampler, where that models parameters apart.
    What the other run searched and this one fixes may be at another value; not where the sampler goes through all
    points, as it would leave those out.

    Args:
        runs: Folders of searches.
        study: With no trial yet.
        making: How the features of this search were made, if that is known.

    Raises:
        RunError: If a run is no search, is of other data or of features that were made otherwise, was measured
            otherwise, or lacks an objective.
    """
    return [_learn(each, study) for each in [_read(run, study, making) for run in runs]]


def _read(run: Path, study: Study, making: Making | None) -> _Earlier:
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
    said = manifest.get("data", {}).get("making")
    if making and said and (differs := from_plain(said).differences(making)):
        raise RunError(
            f"--warm-start {run}: searched on features that were made otherwise ({differs} here); leave the run out, "
            "or name features that were made as those"
        )
    space = build(SearchSpace, read_mapping(other / SPACE), str(other / SPACE))
    trials = [trial for trial in own(read_record(other).entries) if trial.state in VALUED]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    lacking = [
        name
        for name in study.objectives.names
        if complete and all(study.objectives.values(trial, 0.0)[name] is None for trial in complete)
    ]
    if lacking:
        raise RunError(
            f"--warm-start {run}: none of its results has {lacking[0]}, an objective of this search; leave the run out"
        )
    return _Earlier(run, other, space, Candidates(space, theirs), trials)


def _learn(earlier: _Earlier, study: Study) -> str:
    """Adds the results of one run; returns how many, and what was left out."""
    held = {trial.user_attrs.get("learned_from") for trial in study.entries()}
    same_unit = earlier.space.early_stopping.unit == study.space.early_stopping.unit
    learned = 0
    left: Counter[str] = Counter()
    missing, fixed = Counter[str](), Counter[str]()
    for trial in earlier.trials:
        origin = f"{earlier.folder} trial {trial.number}"
        point = _point(earlier, trial, study.candidates)
        if origin in held:
            left["known already"] += 1
        elif point.fault is not None:
            left[point.fault] += 1
        elif not same_unit and trial.state != TrialState.COMPLETE:
            left["stopped early, by another unit than here"] += 1
        elif not _add(study, trial, point.params, origin, same_unit):
            left["without a value of every objective"] += 1
        else:
            learned += 1
            missing.update(point.missing)
            fixed.update(point.fixed)
    parts = [f"learned from {learned} of the {len(earlier.trials)} results in {earlier.run}"]
    parts += [f"{key} unknown or out of range in {count}" for key, count in missing.most_common()]
    parts += [f"{key} at other values than here in {count}" for key, count in fixed.most_common()]
    parts += [f"left out {count}: {why}" for why, count in left.most_common()]
    return "; ".join(parts)


def _point(earlier: _Earlier, trial: FrozenTrial, candidates: Candidates) -> _Point:
    """Returns a result of another run as a point of this search."""
    plain = earlier.candidates.experiment(trial.params).plain()
    sampler = candidates.space.sampler
    found = candidates.spread(get_keys(plain, candidates.space.parameters))
    missing = _missing(found, candidates)
    params = {name: value for name, value in found.items() if name.partition("[")[0] not in missing}
    try:
        here = override(candidates.base.plain(), candidates.overrides(params), "").plain()
    except ConfigError:
        return _Point(fault="its values do not go together here")
    ours, theirs = flatten(here), flatten(plain)
    differing = {key for key in ours.keys() - missing if not key.startswith(_BESIDE) and ours[key] != theirs.get(key)}
    if other := sorted(differing - earlier.space.parameters.keys()):
        return _Point(fault=f"{other[0]} differs")
    if not params:
        return _Point(fault="no value of a parameter here")
    if missing and sampler.row.models != "own":
        return _Point(fault=f"sampler {sampler.name} needs every parameter, and {min(missing)} has no value here")
    if differing and sampler.row.enumerates:
        return _Point(fault=f"{min(differing)} differs")
    return _Point(params, missing, frozenset(differing))


def _missing(params: Mapping[str, Any], candidates: Candidates) -> frozenset[str]:
    """Returns the parameters that apply at a point and have no value, or not in every layer."""
    missing: set[str] = set()
    for key in candidates.space.order:
        per_layer = candidates.space.parameters[key].per_layer
        if (per_layer and layers_key(key) in missing) or any(
            name not in params for name in candidates.names(key, params)
        ):
            missing.add(key)
    return frozenset(missing)


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
