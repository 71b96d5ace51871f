"""The user attributes of trials: what their reports bring, and writing them, few at once."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from cdn_tune.tuning.engine.door import TrialReport
from cdn_tune.tuning.study.filtered_study import StoredStudy
from cdn_tune.tuning.study.rungs import COMPARED
from cdn_tune.tuning.study.stopping_rules import QUERY_IOUS

AT_ONCE = frozenset({"best_epoch", "val", "epochs", "reason", "failure", "memory_gb", "parameters"})
_SECONDS = 2.0  # between two writes of what can wait of a trial
_A_SECOND = 25.0  # such writes over all trials, at most


class ReportAttributes:
    """Makes the attributes of each report; keeps the fastest evaluation of each trial and where it ran.

    Args:
        by_query: Whether the stopping rule compares trials query by query, and needs the IoU of each.
        metrics: Val metrics in which it compares trials, besides their value.
    """

    def __init__(self, by_query: bool, metrics: Sequence[str] = ()) -> None:
        self._by_query, self._metrics = by_query, metrics
        self._best: dict[int, list[float]] = {}  # of those metrics
        self._latency: dict[int, float] = {}  # ms per query
        self._segments: dict[int, list[list[Any]]] = {}

    def of(self, number: int, step: int, report: TrialReport) -> dict[str, Any]:
        """Returns the user attributes that a trial's report brings; `step` counts in the unit of the stopping rule."""
        epoch = report.epoch
        segments = self._segments.setdefault(number, [])
        _extend(segments, report)
        attributes: dict[str, Any] = {
            "best_epoch": epoch.best_epoch,
            "epoch": epoch.epoch,
            "epochs": epoch.epochs,
            "steps": epoch.steps,
            "loss": epoch.loss,
            "seconds": report.seconds,
            "samples_per_second": epoch.samples_per_second,
            "segments": [list(segment) for segment in segments],
        }
        if epoch.val_queries:
            latency = 1000 * epoch.val_seconds / epoch.val_queries
            self._latency[number] = min(self._latency.get(number, latency), latency)
        if number in self._latency:
            attributes["latency_ms"] = self._latency[number]
        if epoch.best_epoch == epoch.epoch:
            attributes["val"] = dict(epoch.val)
        if self._by_query and epoch.query_ious:
            attributes[f"{QUERY_IOUS}:{step}"] = epoch.query_ious
        if self._metrics:
            best = self._best.get(number, [-math.inf] * len(self._metrics))
            best = [max(held, epoch.val.get(name, held)) for name, held in zip(self._metrics, best, strict=True)]
            self._best[number] = best
            if all(map(math.isfinite, best)):
                attributes[f"{COMPARED}:{step}"] = best
        return attributes

    def forget(self, number: int) -> None:
        """Drops what is kept of a trial that has ended."""
        self._latency.pop(number, None)
        self._best.pop(number, None)
        self._segments.pop(number, None)


def _extend(segments: list[list[Any]], report: TrialReport) -> None:
    """Adds a report's time to where a trial ran: node, start and end in seconds since 1970, on that node's clock."""
    if segments and segments[-1][0] == report.node and report.began < segments[-1][2]:  # else a later process
        segments[-1][2] = report.at
    else:
        segments.append([report.node, round(report.began, 1), report.at])


class Attributes:
    """Writes trials' user attributes.

    A database takes every attribute as a transaction of its own. What changes with every report (the loss, the seconds)
    is therefore written every other second at most, where many trials run less often, and in full when the trial ends;
    what chooses (the best epoch and its metrics) at once.

    Args:
        study: Where they are recorded.
        clock: Seconds since any moment, never falling.
    """

    def __init__(self, study: StoredStudy, clock: Callable[[], float]) -> None:
        self._study, self._clock = study, clock
        self._waiting: dict[int, dict[str, Any]] = {}
        self._written: dict[int, float] = {}

    def add(self, trial: FrozenTrial, attributes: Mapping[str, Any]) -> None:
        """Takes attributes of a running trial; those that can wait are written now and then."""
        now = self._clock()
        pause = max(_SECONDS, len(self._written) / _A_SECOND)
        due = now - self._written.setdefault(trial.number, now) >= pause
        waiting = self._waiting.setdefault(trial.number, {})
        waiting |= attributes
        chosen = {key for key in waiting if due or key in AT_ONCE or ":" in key}
        self.write(trial, {key: waiting.pop(key) for key in sorted(chosen)})
        if due:
            self._written[trial.number] = now

    def flush(self, trial: FrozenTrial) -> None:
        """Writes what waits."""
        self.write(trial, self._waiting.pop(trial.number, {}))
        self._written.pop(trial.number, None)

    def write(self, trial: FrozenTrial, attributes: Mapping[str, Any]) -> None:
        """Writes attributes that have changed."""
        held = trial.user_attrs
        changed = {key: value for key, value in attributes.items() if key not in held or held[key] != value}
        self._study.set_attributes(trial.number, changed)
