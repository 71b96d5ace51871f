"""A storage that passes its calls on to another one: the base of this package's storages, which alter a few calls."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Container, Sequence
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        return self.call(name, *arguments, **options)

    method.__name__ = name
    return method


# What `BaseStorage` leaves abstract, in the installed version, and what it derives slowly or does nothing in.
_NAMES = BaseStorage.__abstractmethods__ | {"get_trial_id_from_study_id_trial_number", "remove_session"}
_Delegate: Any = type("_Delegate", (BaseStorage,), {name: _passed_on(name) for name in sorted(_NAMES)})


class DelegatingStorage(_Delegate):  # type: ignore[misc]
    """Passes every call on to the storage behind it."""

    def __init__(self, behind: BaseStorage) -> None:
        self.behind = behind

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method of the storage behind and returns its result."""
        return getattr(self.behind, name)(*arguments, **options)


class ShowingStorage(DelegatingStorage):
    """A storage that shows trials of its own choice in place of those behind it."""

    @abstractmethod
    def shown(self) -> Sequence[FrozenTrial]:
        """Returns the trials to show."""

    def get_all_trials(
        self,
        study_id: int,  # noqa: ARG002
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Returns the trials that are shown."""
        trials = [trial for trial in self.shown() if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials
