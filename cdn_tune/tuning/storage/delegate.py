"""A storage that passes its calls on to another one: the base of this package's storages, which alter a few calls."""

from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from sqlalchemy.exc import SQLAlchemyError

from cdn_tune.errors import RunError
from cdn_tune.tuning.storage.check import one_line


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


class ReportingStorage(DelegatingStorage):
    """A storage whose failures, such as a full disk, are one line.

    The first is final: what it has left half done is mended when the storage is next opened.

    Args:
        behind: The storage.
        shown: Its URL without the password.
    """

    def __init__(self, behind: BaseStorage, shown: str) -> None:
        super().__init__(behind)
        self._shown, self._fault = shown, ""

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method of the storage behind.

        Raises:
            RunError: If it fails, or has failed before.
        """
        if not self._fault:
            try:
                return super().call(name, *arguments, **options)
            except (StorageInternalError, SQLAlchemyError, OSError) as error:
                self._fault = one_line(error)
        raise RunError(
            f"storage {self._shown}: cannot be read or written ({self._fault}); make room or mend it, and the same "
            "command goes on"
        )
