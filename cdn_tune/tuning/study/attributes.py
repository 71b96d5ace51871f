"""A trial's user attributes, written few at once.

A database takes every attribute as a transaction of its own. What changes with every report (the loss, the seconds) is
therefore written every other second at most, and in full when the trial ends; what chooses (the best epoch and its
metrics) at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from optuna.trial import FrozenTrial

from cdn_tune.tuning.study.filtered_study import StoredStudy

AT_ONCE = frozenset({"best_epoch", "val", "epochs", "reason", "failure", "memory_gb", "parameters"})
_SECONDS = 2.0


class Attributes:
    """Writes trials' user attributes.

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
        due = now - self._written.setdefault(trial.number, now) >= _SECONDS
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
