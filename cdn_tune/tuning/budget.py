"""What ends a search before its last trial: hours, GPU-hours, a value that is good enough, no progress."""

import math
from bisect import insort
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from cdn_tune.config import BudgetConfig
from cdn_tune.tuning.results.leaderboard import HOUR, occupied_seconds
from cdn_tune.tuning.study.ranking import FINISHED, VALUED, as_ended, own, role_of, trained, value_of


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


class Tally:
    """What the trials of a search have spent and reached; those that have ended are gone through once.

    Args:
        entries: Of the study.
        top: How many of the best are known.
    """

    def __init__(self, entries: Iterable[FrozenTrial] = (), top: int = 0) -> None:
        self._top = top
        self._seconds = 0.0  # that those which have ended have occupied
        self._reached = -math.inf  # the best value of any of them
        self._best: list[tuple[float, int, FrozenTrial]] = []  # of those with a result, best first
        self._last_best, self.since_best = -1.0, 0  # trials that have ended since the best one did
        ended = [trial for trial in trained(entries) if trial.state in FINISHED and trial.datetime_complete is not None]
        for trial in sorted(ended, key=lambda trial: (trial.datetime_complete, trial.number)):
            self.add(trial)

    def add(self, trial: FrozenTrial) -> None:
        """Adds a trial, or a confirmation, that has ended."""
        self._seconds += occupied_seconds(trial.user_attrs)
        if role_of(trial) != "trial":
            return
        value = value_of(trial)
        self._reached = max(self._reached, -math.inf if value is None else value)
        if trial.state not in VALUED:
            return
        if value is not None and value > self._last_best:
            self._last_best, self.since_best = value, 0
        else:
            self.since_best += 1
        if value is not None:
            insort(self._best, (-value, trial.number, trial))
            del self._best[self._top :]

    def seconds(self, running: Iterable[FrozenTrial]) -> float:
        """Returns the seconds that all trials have occupied, given those that run."""
        return self._seconds + sum(occupied_seconds(trial.user_attrs) for trial in running)

    def reached(self, running: Iterable[FrozenTrial]) -> float:
        """Returns the best val metric that any trial has reached, given those that run; -inf before the first."""
        return max([self._reached, *(value for value in map(value_of, own(running)) if value is not None)])

    def best(self, running: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Returns the best of those that have ended, or are paused, given those that run."""
        paused = (trial for trial in map(as_ended, own(running)) if trial.state in VALUED)
        valued = [(-(value_of(trial) or 0.0), trial.number, trial) for trial in paused]
        return [trial for _, _, trial in sorted([*self._best, *valued])[: self._top]]


def end_of(
    budget: BudgetConfig,
    tally: Tally,
    running: Collection[FrozenTrial],
    seconds: float,
    gpus: float,
    reserve: Reserve | None = None,
) -> End | None:
    """Returns why a search should end now; None if it should not.

    Args:
        budget: Of the search.
        tally: Of this run's trials and confirmations that have ended.
        running: Those that run or are paused.
        seconds: Of searching, over all starts.
        gpus: GPUs that a trial occupies.
        reserve: What must be left of the hours and GPU-hours.
    """
    back, rest = (reserve, "; the rest is for confirmation") if reserve else (Reserve(), "")
    if budget.hours is not None and seconds + back.seconds >= budget.hours * HOUR:
        return End(f"{seconds / HOUR:.3g} of budget.hours={budget.hours:g} are spent{rest}", at_once=True)
    if budget.gpu_hours is not None:
        spent = gpus * tally.seconds(running) / HOUR
        if spent + gpus * back.slots * back.seconds / HOUR >= budget.gpu_hours:
            return End(f"{spent:.3g} of budget.gpu_hours={budget.gpu_hours:g} are spent{rest}", at_once=True)
    if budget.target is not None and (best := tally.reached(running)) >= budget.target:
        return End(f"budget.target={budget.target:g} is reached with {best:.4f}", at_once=True)
    if budget.plateau is not None and tally.since_best >= budget.plateau:
        return End(f"{tally.since_best} trials brought nothing better (budget.plateau)", at_once=False)
    return None


def _whole_seconds(trial: FrozenTrial) -> float:
    """Returns the seconds that a trial takes to its end."""
    note = trial.user_attrs
    return float(note.get("seconds", 0.0) * note.get("epochs", 1) / max(note.get("epoch", 1), 1))
