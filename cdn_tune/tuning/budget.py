"""What ends a search before its last trial: hours, GPU-hours, a value that is good enough, no progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from cdn_tune.config import BudgetConfig
from cdn_tune.tuning.results.leaderboard import occupied_seconds
from cdn_tune.tuning.study.ranking import VALUED, value_of

HOUR = 3600.0


@dataclass(frozen=True)
class Spent:
    """What a search has used up.

    Attributes:
        seconds: Of searching, over all starts.
        gpu_seconds: Of GPUs, over all trials.
        best: Best val metric so far; None before the first epoch.
        since_best: Trials that finished since the best one did.
    """

    seconds: float
    gpu_seconds: float
    best: float | None
    since_best: int


@dataclass(frozen=True)
class End:
    """Why a search ends.

    Attributes:
        reason: In words that say how to go on.
        at_once: Whether running trials stop with a checkpoint, rather than end.
    """

    reason: str
    at_once: bool


def spent(trials: Sequence[FrozenTrial], seconds: float, gpus_per_trial: float) -> Spent:
    """Returns what a search has used up.

    Args:
        trials: This run's trials.
        seconds: Of searching, over all starts.
        gpus_per_trial: GPUs that a trial occupies.
    """
    gpu_seconds = gpus_per_trial * sum(occupied_seconds(trial.user_attrs) for trial in trials)
    values = [value for value in map(value_of, trials) if value is not None]
    ended = [trial for trial in trials if trial.state in VALUED and trial.datetime_complete is not None]
    ended.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    best, since = -1.0, 0
    for trial in ended:
        value = value_of(trial)
        best, since = (value, 0) if value is not None and value > best else (best, since + 1)
    return Spent(seconds, gpu_seconds, max(values, default=None), since)


def end_of(budget: BudgetConfig, used: Spent) -> End | None:
    """Returns why a search should end now; None if it should not."""
    if budget.hours is not None and used.seconds >= budget.hours * HOUR:
        return End(f"{used.seconds / HOUR:.3g} of budget.hours={budget.hours:g} are spent", at_once=True)
    if budget.gpu_hours is not None and used.gpu_seconds >= budget.gpu_hours * HOUR:
        return End(f"{used.gpu_seconds / HOUR:.3g} of budget.gpu_hours={budget.gpu_hours:g} are spent", at_once=True)
    if budget.target is not None and used.best is not None and used.best >= budget.target:
        return End(f"budget.target={budget.target:g} is reached with {used.best:.4f}", at_once=True)
    if budget.plateau is not None and used.since_best >= budget.plateau:
        return End(f"{used.since_best} trials brought nothing better (budget.plateau)", at_once=False)
    return None
