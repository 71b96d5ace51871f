"""Early stopping: the pruners, and which trials they see. `config.tables.STOPPING_RULES` lists the rules."""

import math
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import optuna
from optuna.pruners import BasePruner, NopPruner, PercentilePruner, WilcoxonPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config import EarlyStoppingConfig, SearchSpace
from cdn_tune.config.tables import resolve
from cdn_tune.training.reports import unpack_ious
from cdn_tune.tuning.study.filtered_study import altered, seen
from cdn_tune.tuning.study.ranking import VALUED, own, superseded, value_of
from cdn_tune.tuning.study.rungs import COMPARED

QUERY_IOUS = "query_ious"  # user attribute f"{QUERY_IOUS}:{step}", packed by training.query_ious


class PatiencePruner(BasePruner):
    """Prunes a trial whose value has not risen for more than some reports in a row.

    Optuna's own compares the best value before a window with the best within it. Ours are best values so far, which
    never fall, so that it would never prune.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:  # noqa: ARG002
        """Returns whether more reports than that brought no rise."""
        values = [value for _, value in sorted(trial.intermediate_values.items())]
        return len(values) - 1 - values.index(max(values)) > self._patience if values else False


class CurvePruner(BasePruner):
    """Prunes a trial that will hardly reach the best complete one, by how far complete trials were at the same step.

    What a trial has reached at a step is a share of what it ends at, so a trial comes to the best value only if its
    share is no greater than its value by the best one. With k of n complete trials whose share was so small, the
    probability of that is taken as (k + 1) / (n + 1). If the n + 1 shares come in any order with equal probability, a
    trial that would reach the best is pruned at a step with a probability of `chance` at most (a conformal p-value).
    One that is as good as the best was at that step is never pruned.

    Values are of val metrics: not negative. A trial that was stopped does not count, since its end is unknown, nor does
    one that had ended by that step.

    Args:
        startup: Complete trials before any trial is pruned.
        chance: Prunes at this probability and below.
    """

    def __init__(self, startup: int, chance: float) -> None:
        self._startup, self._chance = startup, chance

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Returns whether the trial reaches the best complete one with no greater probability than `chance`."""
        step, value = trial.last_step, value_of(trial)
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        ended = [(other, end) for other in complete if (end := value_of(other)) is not None]
        if step is None or value is None or not ended or len(ended) < self._startup:
            return False
        best = max(end for _, end in ended)
        curves = [
            (reached, end)
            for other, end in ended
            if max(other.intermediate_values) > step and (reached := _reached(other, step)) is not None
        ]
        if any(end == best and reached <= value for reached, end in curves):
            return False
        count = sum(value * end >= reached * best for reached, end in curves)  # of value / best >= reached / end
        return (count + 1) / (len(curves) + 1) <= self._chance


def build_pruner(space: SearchSpace) -> BasePruner:
    """Builds the pruner of a search space, for :func:`should_prune`; one that prunes nothing where rungs decide."""
    config = space.early_stopping
    if config.row.build is None:
        return NopPruner()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner: BasePruner = resolve(config.row.build)(config)
    return pruner


def build_median(config: EarlyStoppingConfig) -> BasePruner:
    """Builds the median rule."""
    return PercentilePruner(50.0, config.startup_trials)


def build_percentile(config: EarlyStoppingConfig) -> BasePruner:
    """Builds the percentile rule."""
    return PercentilePruner(config.percentile, config.startup_trials)


def build_wilcoxon(config: EarlyStoppingConfig) -> BasePruner:
    """Builds the signed-rank test."""
    return WilcoxonPruner(p_threshold=config.p_value)


def build_curve(config: EarlyStoppingConfig) -> BasePruner:
    """Builds the rule that reads the study's own curves."""
    return CurvePruner(config.startup_trials, config.chance)


def build_patience(config: EarlyStoppingConfig) -> BasePruner:
    """Builds the patience rule."""
    return PatiencePruner(config.patience)


def should_prune(
    study: optuna.Study, pruner: BasePruner, trial: FrozenTrial, space: SearchSpace, is_last: bool = False
) -> bool:
    """Decides whether a trial that has just reported is stopped, by a rule without rungs; see `study.rungs` for others.

    The pruner sees the first objective only, a val metric, as the best value so far at each report, or each of the
    `metrics` so. It sees this run's own trials, without failed ones that were tried again. No trial is pruned before
    `min_resource`, nor at the end, where nothing is left to save.

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
    config = space.early_stopping
    if step is None or step < config.least or is_last:
        return False
    if config.row.compares == "queries":
        return _prune_by_queries(study, pruner, trial, step)

    def lags(of: Callable[[FrozenTrial], FrozenTrial]) -> bool:
        def show(trials: list[FrozenTrial]) -> list[FrozenTrial]:
            others = list(map(of, competitors(trials)))
            return _as_of(step, others) if config.row.compares == "last report" else others

        return pruner.prune(seen(study, show, [StudyDirection.MAXIMIZE]), of(trial))

    if not config.metrics:
        return lags(lambda each: each)
    columns = (partial(_in_metric, place) for place in range(len(config.metrics)))
    return (any if config.combine == "any" else all)(map(lags, columns))


def competitors(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the trials that a trial is compared with, each with its best intermediate value as its value."""
    replaced = superseded(trials)
    return [_valued(trial) for trial in own(trials) if trial.number not in replaced]


def _prune_by_queries(study: optuna.Study, pruner: BasePruner, trial: FrozenTrial, step: int) -> bool:
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
    if trial.state in VALUED and len(trial.values or ()) == 1:  # recorded so when it ended
        return trial
    value = value_of(trial)
    values = None if value is None else [value]
    return trial if trial.values == values else altered(trial, values=values)  # spares copies of all that have ended


def _in_metric(place: int, trial: FrozenTrial) -> FrozenTrial:
    """Returns a trial with its values in one of the metrics that are compared."""
    held = {step: trial.user_attrs.get(f"{COMPARED}:{step}") for step in trial.intermediate_values}
    return altered(trial, intermediate_values={step: values[place] for step, values in held.items() if values})


def _as_of(step: int, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Returns trials with, at this step, what they had reached by then, if anything."""
    reached = [(other, _last_step(other, step)) for other in trials]
    return [
        altered(other, intermediate_values={} if last is None else {step: other.intermediate_values[last]})
        for other, last in reached
    ]


def _reached(trial: FrozenTrial, step: int) -> float | None:
    """Returns the best value that a trial had reached by a step."""
    values = (value for at, value in trial.intermediate_values.items() if at <= step and math.isfinite(value))
    return max(values, default=None)


def _last_step(trial: FrozenTrial, step: int) -> int | None:
    """Returns the step of a trial's last report that is not later than a step."""
    return max((each for each in trial.intermediate_values if each <= step), default=None)
