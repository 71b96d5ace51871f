"""What ends a search before its last trial: hours, GPU-hours, a value that is good enough, no progress."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from cdn_tune.config import BudgetConfig
from cdn_tune.tuning.results.leaderboard import HOUR, occupied_seconds
from cdn_tune.tuning.study.ranking import VALUED, own, value_of


@dataclass(frozen=True)
class End:
    """Why a search ends, and whether running trials stop with a checkpoint at once, rather than run to their end."""

    reason: str
    at_once: bool


@dataclass(frozen=True)
class Reserve:
    """What confirmation is expected to take: seconds from now on, and the trials that run at once meanwhile."""

    seconds: float = 0.0
    slots: int = 1

    @classmethod
    def of(cls, confirmed: Collection[FrozenTrial], slots: int) -> "Reserve":
        """Returns what it takes to train trials again, each to its end, after the last one that runs now has ended."""
        lengths = [_whole_seconds(trial) for trial in confirmed]
        return cls(sum(lengths) / slots + max(lengths, default=0.0), slots)


def end_of(
    budget: BudgetConfig, trials: Sequence[FrozenTrial], seconds: float, gpus: float, reserve: Reserve | None = None
) -> End | None:
    """Returns why a search should end now; None if it should not.

    Args:
        budget: Of the search.
        trials: This run's trials and confirmations.
        seconds: Of searching, over all starts.
        gpus: GPUs that a trial occupies.
        reserve: What must be left of the hours and GPU-hours.
    """
    back, rest = (reserve, "; the rest is for confirmation") if reserve else (Reserve(), "")
    if budget.hours is not None and seconds + back.seconds >= budget.hours * HOUR:
        return End(f"{seconds / HOUR:.3g} of budget.hours={budget.hours:g} are spent{rest}", at_once=True)
    if budget.gpu_hours is not None:
        spent = gpus * sum(occupied_seconds(trial.user_attrs) for trial in trials) / HOUR
        if spent + gpus * back.slots * back.seconds / HOUR >= budget.gpu_hours:
            return End(f"{spent:.3g} of budget.gpu_hours={budget.gpu_hours:g} are spent{rest}", at_once=True)
    trials = own(trials)
    if budget.target is not None:
        best = max((value for value in map(value_of, trials) if value is not None), default=None)
        if best is not None and best >= budget.target:
            return End(f"budget.target={budget.target:g} is reached with {best:.4f}", at_once=True)
    if budget.plateau is not None and (since := _since_best(trials)) >= budget.plateau:
        return End(f"{since} trials brought nothing better (budget.plateau)", at_once=False)
    return None


def _whole_seconds(trial: FrozenTrial) -> float:
    """Returns the seconds that a trial takes to its end."""
    note = trial.user_attrs
    return float(note.get("seconds", 0.0) * note.get("epochs", 1) / max(note.get("epoch", 1), 1))


def _since_best(trials: Sequence[FrozenTrial]) -> int:
    """Returns how many trials have ended since the best one did."""
    ended = [trial for trial in trials if trial.state in VALUED and trial.datetime_complete is not None]
    best, since = -1.0, 0
    for trial in sorted(ended, key=lambda trial: (trial.datetime_complete, trial.number)):
        value = value_of(trial)
        best, since = (value, 0) if value is not None and value > best else (best, since + 1)
    return since
