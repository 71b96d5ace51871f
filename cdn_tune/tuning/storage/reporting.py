"""A storage whose failures are one line."""

from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage

from cdn_tune.errors import RunError
from cdn_tune.tuning.storage.check import one_line
from cdn_tune.tuning.storage.delegate import DelegatingStorage


class ReportingStorage(DelegatingStorage):
    """A storage whose failures, such as a full disk, are one line.

    The first is final: what it has left half done is mended when the storage is next opened.

    Args:
        behind: The storage.
        shown: Its URL without the password.
        more: What it raises besides Optuna's own errors and those of files.
    """

    def __init__(self, behind: BaseStorage, shown: str, *more: type[Exception]) -> None:
        super().__init__(behind)
        self._shown, self._fault = shown, ""
        self._errors: tuple[type[Exception], ...] = (StorageInternalError, OSError, *more)

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method of the storage behind.

        Raises:
            RunError: If it fails, or has failed before.
        """
        if not self._fault:
            try:
                return super().call(name, *arguments, **options)
            except self._errors as error:
                self._fault = one_line(error)
        raise RunError(
            f"storage {self._shown}: cannot be read or written ({self._fault}); make room or mend it, and the same "
            "command goes on"
        )
