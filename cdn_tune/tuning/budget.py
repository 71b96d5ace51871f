"""What ends a search before its last trial: hours, GPU-hours, a value that is good enough, no progress."""

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from cdn_tune.config import BudgetConfig
from cdn_tune.tuning.results.leaderboard import HOUR, occupied_seconds
from cdn_tune.tuning.study.ranking import VALUED, value_of


@dataclass(frozen=True)
class End:
    """Why a search ends, and whether running trials stop with a checkpoint at once, rather than run to their end."""

    reason: str
    at_once: bool


def end_of(budget: BudgetConfig, trials: Sequence[FrozenTrial], seconds: float, gpus: float) -> End | None:
    """Returns why a search should end now; None if it should not.

    Args:
        budget: Of the search.
        trials: This run's trials.
        seconds: Of searching, over all starts.
        gpus: GPUs that a trial occupies.
    """
    if budget.hours is not None and seconds >= budget.hours * HOUR:
        return End(f"{seconds / HOUR:.3g} of budget.hours={budget.hours:g} are spent", at_once=True)
    if budget.gpu_hours is not None:
        spent = gpus * sum(occupied_seconds(trial.user_attrs) for trial in trials) / HOUR
        if spent >= budget.gpu_hours:
            return End(f"{spent:.3g} of budget.gpu_hours={budget.gpu_hours:g} are spent", at_once=True)
    if budget.target is not None:
        best = max((value for value in map(value_of, trials) if value is not None), default=None)
        if best is not None and best >= budget.target:
            return End(f"budget.target={budget.target:g} is reached with {best:.4f}", at_once=True)
    if budget.plateau is not None and (since := _since_best(trials)) >= budget.plateau:
        return End(f"{since} trials brought nothing better (budget.plateau)", at_once=False)
    return None


def _since_best(trials: Sequence[FrozenTrial]) -> int:
    """Returns how many trials have ended since the best one did."""
    ended = [trial for trial in trials if trial.state in VALUED and trial.datetime_complete is not None]
    best, since = -1.0, 0
    for trial in sorted(ended, key=lambda trial: (trial.datetime_complete, trial.number)):
        value = value_of(trial)
        best, since = (value, 0) if value is not None and value > best else (best, since + 1)
    return since
