"""A study as a sampler or a pruner is to see it: chosen trials, chosen directions, everything else as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Sequence
from functools import cached_property
from typing import Any, cast

from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

Show = Callable[[list[FrozenTrial]], list[FrozenTrial]]


def seen(study: Study, show: Show, directions: Sequence[StudyDirection] | None = None) -> Study:
    """Returns a study that shows chosen trials only; what is written to it goes to the study behind it.

    Trials are read once, when they are first asked for: a view lasts for one decision.

    Args:
        study: The study behind the view.
        show: From the study's trials to those that are shown; leaves the study's own unchanged, see :func:`altered`.
        directions: Of the values shown; None for the study's own.
    """
    view = copy.copy(study)
    shown = list(study.directions if directions is None else directions)
    view._storage = cast(BaseStorage, _Storage(study, show, shown))
    view._directions = shown
    return view


def altered(trial: FrozenTrial, **attributes: Any) -> FrozenTrial:
    """Returns a copy of a trial with other attributes; what is not given is shared with the trial."""
    changed = copy.copy(trial)
    for name, value in attributes.items():
        setattr(changed, name, value)
    return changed


class _Storage:
    """A storage that shows chosen trials. Optuna's samplers and pruners read all they need through it."""

    def __init__(self, study: Study, show: Show, directions: list[StudyDirection]) -> None:
        self._study, self._show, self._directions = study, show, directions

    @cached_property
    def _trials(self) -> list[FrozenTrial]:
        return self._show(self._study.get_trials(deepcopy=False))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study._storage, name)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:  # noqa: ARG002
        return self._directions

    def get_all_trials(
        self,
        study_id: int,  # noqa: ARG002
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        trials = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        complete = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        if not complete:
            raise ValueError("no trial is complete yet")
        sign = 1 if self._directions[0] == StudyDirection.MAXIMIZE else -1
        return max(complete, key=lambda trial: sign * (trial.value or 0.0))
