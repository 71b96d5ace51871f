"""Failures told apart: what would come again, what a lost machine did, what needs less memory."""

from __future__ import annotations

import re
from collections.abc import Iterable

from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config import Experiment
from cdn_tune.errors import MemoryShortage, NotFinite, WorkerLost
from cdn_tune.tuning.study.candidates import cost
from cdn_tune.tuning.study.ranking import own

DETERMINISTIC, MEMORY, NOT_FINITE, LOST = "deterministic", "memory", "not_finite", "lost"
MEANING = {
    DETERMINISTIC: "would fail again",
    MEMORY: "out of memory",
    NOT_FINITE: "not finite",
    LOST: "worker or node lost",
}
IN_A_ROW = 3  # equal failures before the first epoch, after which a search stops
_NUMBERS = re.compile(r"\d+(\.\d+)?(e[-+]?\d+)?|/[^\s:;,]+")


def kind_of(error: BaseException) -> str:
    """Returns the kind of a failure.

    ``memory``: not even the smallest micro-batch fits. ``not_finite``: a loss, gradient or score. ``lost``: its worker
    or node died, more often than `max_failures` bears. ``deterministic``: anything else; it would come again.
    """
    if isinstance(error, MemoryShortage | MemoryError):
        return MEMORY
    if isinstance(error, NotFinite):
        return NOT_FINITE
    return LOST if isinstance(error, WorkerLost) else DETERMINISTIC


class Failures:
    """What a search learns from failures.

    Args:
        entries: All that is on record.
    """

    def __init__(self, entries: Iterable[FrozenTrial]) -> None:
        self.memory_limit: float | None = None  # GB by estimate of the smallest trial that ran out of memory
        self._early: list[str] = []  # reasons of the latest trials, as far as they failed before their first epoch
        trials = own(entries)
        for trial in trials:
            if trial.user_attrs.get("failure") == MEMORY and "memory_gb" in trial.user_attrs:
                self._lower(trial.user_attrs["memory_gb"])

    def remember_memory(self, experiment: Experiment) -> float:
        """Takes note that a trial ran out of memory; returns what it was estimated to need, in GB."""
        need = cost("memory_gb", experiment)
        self._lower(need)
        return need

    def add(self, trial: FrozenTrial) -> str | None:
        """Takes note of a failed trial; returns why the search should stop, if it should."""
        learned = trial.user_attrs["failure"] in (MEMORY, NOT_FINITE)  # of its parameters, not of the surroundings
        if trial.state != TrialState.FAIL or trial.intermediate_values or learned:
            self._early.clear()
            return None
        reason = trial.user_attrs["reason"]
        if self._early and _shape(self._early[-1]) != _shape(reason):
            self._early.clear()
        self._early.append(reason)
        if len(self._early) < IN_A_ROW:
            return None
        return f"{IN_A_ROW} trials in a row failed before their first epoch for the same reason: {reason}"

    def end_well(self) -> None:
        """Takes note that a trial reported an epoch."""
        self._early.clear()

    def _lower(self, need: float) -> None:
        self.memory_limit = need if self.memory_limit is None else min(self.memory_limit, need)


def _shape(reason: str) -> str:
    """Returns a reason without its numbers and paths, which differ from trial to trial."""
    return _NUMBERS.sub("#", reason)
