"""Early stopping: which of Optuna's pruners decides, and what it is shown of the study."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    WilcoxonPruner,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config import SearchSpace
from cdn_tune.training.evaluate.query_ious import unpack_ious
from cdn_tune.tuning.study.filtered_study import altered, seen
from cdn_tune.tuning.study.ranking import VALUED, own, superseded, value_of

QUERY_IOUS = "query_ious"  # user attribute f"{QUERY_IOUS}:{step}", packed by training.query_ious


class PatiencePruner(BasePruner):
    """Prunes a trial whose value has not risen for more than some reports in a row.

    Optuna's own compares the best value before a window with the best within it. Ours are best values so far, which
    never fall, so that it would never prune.

    Args:
        patience: Reports without a rise that are borne.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:  # noqa: ARG002
        """Returns whether patience is at its end."""
        values = [value for _, value in sorted(trial.intermediate_values.items())]
        return len(values) - 1 - values.index(max(values)) > self._patience if values else False


def build_pruner(space: SearchSpace, experiment_epochs: int, steps_per_epoch: int | None = None) -> BasePruner:
    """Builds the pruner of a search space, for :func:`should_prune`.

    Args:
        space: Names the pruner, its settings and what progress is counted in.
        experiment_epochs: Epochs of a trial.
        steps_per_epoch: Optimiser steps of one epoch of the base experiment; read by hyperband that counts steps.

    Raises:
        ValueError: If hyperband counts steps and their number is unknown.
    """
    config = space.early_stopping
    builders: dict[str, Callable[[], BasePruner]] = {
        "asha": lambda: SuccessiveHalvingPruner(config.min_resource, config.reduction_factor),
        "hyperband": lambda: _hyperband(space, experiment_epochs, steps_per_epoch),
        "median": lambda: PercentilePruner(50.0, config.startup_trials),
        "percentile": lambda: PercentilePruner(config.percentile, config.startup_trials),
        "wilcoxon": lambda: WilcoxonPruner(p_threshold=config.p_value),
        "patience": lambda: PatiencePruner(config.patience),
        "none": NopPruner,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return builders[config.name]()


def _hyperband(space: SearchSpace, epochs: int, steps_per_epoch: int | None) -> HyperbandPruner:
    config = space.early_stopping
    longest = epochs
    if config.unit == "step":
        if steps_per_epoch is None:
            raise ValueError("hyperband that counts steps needs the steps of an epoch")
        longest *= steps_per_epoch
    longest = max(longest, config.min_resource)
    pruner = HyperbandPruner(config.min_resource, longest, config.reduction_factor)
    brackets = 1  # counted in whole numbers: Optuna takes a logarithm, by which 243 = 3**5 has a bracket too few
    while config.min_resource * config.reduction_factor**brackets <= longest:
        brackets += 1
    pruner._n_brackets = brackets
    return pruner


def should_prune(
    study: optuna.Study, pruner: BasePruner, trial: FrozenTrial, space: SearchSpace, is_last: bool = False
) -> bool:
    """Decides whether a trial that has just reported is stopped.

    The pruner sees the first objective only, a val metric, as the best value so far at each report: a trial that cannot
    win there is not worth its other objectives. It sees this run's own trials, without failed ones that were
    tried again. Nobody is pruned before `min_resource`, nor at the end, where nothing is left to save. Rungs are kept
    in the storage, by which a search that goes on decides as one that was never interrupted.

    A report is compared with each other trial's last report that is not later. Trials with other batch sizes report at
    other optimiser steps, so that median and percentile would find nothing to compare at the same step.

    Args:
        study: The study, of one or several objectives.
        pruner: From :func:`build_pruner`.
        trial: The trial, with its latest intermediate value, in epochs or steps as the space counts.
        space: What is searched.
        is_last: Whether this is the trial's last report.
    """
    step = trial.last_step
    if step is None or step < space.early_stopping.min_resource or isinstance(pruner, NopPruner):
        return False
    if isinstance(pruner, WilcoxonPruner):
        decision = _prune_by_queries(study, pruner, trial, step)
    else:
        show = partial(_as_of, step) if isinstance(pruner, PercentilePruner) else competitors
        decision = pruner.prune(seen(study, show, [StudyDirection.MAXIMIZE]), trial)
    return decision and not is_last


def competitors(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the trials that a trial is compared with, each with its best intermediate value as its value."""
    replaced = superseded(trials)
    return [_valued(trial) for trial in own(trials) if trial.number not in replaced]


def _prune_by_queries(study: optuna.Study, pruner: WilcoxonPruner, trial: FrozenTrial, step: int) -> bool:
    """Compares a trial, query by query, with the best complete one at this step or at its last report before."""
    trials = competitors(study.get_trials(deepcopy=False))
    complete = [other for other in trials if other.state == TrialState.COMPLETE and other.values]
    best = max(complete, key=lambda other: (other.values[0], -other.number), default=None)
    if best is None:
        return False
    ours, theirs = _query_ious(trial, step), _query_ious(best, _last_step(best, step))
    if ours is None or theirs is None or len(ours) != len(theirs) or np.array_equal(ours, theirs):
        return False
    best = altered(best, intermediate_values=dict(enumerate(theirs.tolist())))
    trial = altered(trial, intermediate_values=dict(enumerate(ours.tolist())))
    return pruner.prune(seen(study, lambda _: [best], [StudyDirection.MAXIMIZE]), trial)


def _query_ious(trial: FrozenTrial, step: int | None) -> np.ndarray | None:
    encoded = trial.user_attrs.get(f"{QUERY_IOUS}:{step}")
    return None if encoded is None else unpack_ious(encoded)


def _valued(trial: FrozenTrial) -> FrozenTrial:
    if trial.state in VALUED and len(trial.values or ()) == 1:  # recorded so when it ended; asked at every report
        return trial
    value = value_of(trial)
    values = None if value is None else [value]
    return trial if trial.values == values else altered(trial, values=values)  # spares copies of all that have ended


def _as_of(step: int, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the competitors with, at this step, what they had reached by then, if anything."""
    reached = [(other, _last_step(other, step)) for other in competitors(trials)]
    return [
        altered(other, intermediate_values={} if last is None else {step: other.intermediate_values[last]})
        for other, last in reached
    ]


def _last_step(trial: FrozenTrial, step: int) -> int | None:
    """Returns the step of a trial's last report that is not later than a step."""
    return max((each for each in trial.intermediate_values if each <= step), default=None)
