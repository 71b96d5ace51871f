"""Failures: their kinds, which lost trials are assigned again, and when a search gives up."""

import re
from collections import Counter
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
NODES_IN_A_ROW = 10  # lost under one trial, without an epoch in between, after which the trial is the suspect
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
    """What a search learns from its failures, those on record included."""

    def __init__(self, entries: Iterable[FrozenTrial]) -> None:
        self.memory_limit: float | None = None  # GB by estimate of the smallest trial that ran out of memory
        self._early: list[str] = []  # reasons of the latest trials, as far as they failed before their first epoch
        for trial in own(entries):
            if trial.user_attrs.get("failure") == MEMORY and "memory_gb" in trial.user_attrs:
                self._lower(trial.user_attrs["memory_gb"])

    def remember_memory(self, experiment: Experiment) -> float:
        """Records that a trial ran out of memory; returns what it was estimated to need, in GB."""
        need = cost("memory_gb", experiment)
        self._lower(need)
        return need

    def add(self, trial: FrozenTrial) -> str | None:
        """Records a failed trial; returns why the search should stop, if it should."""
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
        """Records that a trial reported an epoch."""
        self._early.clear()

    def _lower(self, need: float) -> None:
        self.memory_limit = need if self.memory_limit is None else min(self.memory_limit, need)


class Retries:
    """Counts the losses of trials, and decides which trials are assigned again.

    A worker's death is the trial's own until shown otherwise: `max_failures` of them are forgiven. Everything else
    costs nothing: a trial the engine takes back, a node without the data, one that dies, is preempted or out of reach;
    unless one trial loses node after node without ever reporting an epoch.
    """

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._workers: Counter[int] = Counter()
        self._nodes: Counter[int] = Counter()
        self._reached: dict[int, int] = {}

    def may_go_on(self, number: int, kind: str) -> bool:
        """Records a loss of a trial's worker, node or other (`engine.door.Loss`); returns whether it is retried."""
        if kind == "node":
            self._nodes[number] += 1
            return self._nodes[number] < NODES_IN_A_ROW
        if kind == "worker":
            self._workers[number] += 1
            return self._workers[number] <= self._max_failures
        return True

    def reported(self, number: int, epoch: int) -> None:
        """Records a trial's epoch; one it had reached before it was lost does not count."""
        if epoch > self._reached.get(number, 0):
            self._reached[number] = epoch
            self._nodes.pop(number, None)


def _shape(reason: str) -> str:
    """Returns a reason without its numbers and paths, which differ from trial to trial."""
    return _NUMBERS.sub("#", reason)
