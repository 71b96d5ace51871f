"""A flag that one process raises and others read, on any machine: a file, and an object on the run's store."""

import threading
import time
from contextlib import suppress
from pathlib import Path

from cdn_tune.errors import RunError
from cdn_tune.training.object_store.working_copy import place_of

_FILE_SECONDS = 0.5
_STORE_SECONDS = 3.0  # between two requests to an object store


class StopFlag:
    """A flag; the disk is read now and then, and the store less often.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._place = path, place_of(path)
        self._seen, self._file_read, self._store_read = False, -_FILE_SECONDS, -_STORE_SECONDS
        self._request: threading.Thread | None = None

    def __call__(self) -> bool:
        """Returns whether it was raised, as far as is known; called after every step of a training."""
        if not self._seen and time.monotonic() - self._file_read >= _FILE_SECONDS:
            self._file_read = time.monotonic()
            self._seen = self._path.exists()
            self._start_request()
        return self._seen

    def is_raised(self) -> bool:
        """Returns whether it is raised now, here or on the store."""
        return self._path.exists() or self._is_on_store()

    def raise_it(self) -> None:
        """Raises it, here and on the store."""
        self._path.touch()
        if self._place is not None:
            self._place.store.write(self._place.name, b"raised")

    def lower(self) -> None:
        """Takes it back, here and on the store."""
        self._path.unlink(missing_ok=True)
        if self._place is not None:
            self._place.store.delete(self._place.name)

    def _start_request(self) -> None:
        """Reads the store in a thread, so that a training does not wait for the network."""
        if self._place is None or time.monotonic() - self._store_read < _STORE_SECONDS:
            return
        if self._request is None or not self._request.is_alive():
            self._store_read = time.monotonic()
            self._request = threading.Thread(target=self._read_store, daemon=True, name="cdn-tune-flag")
            self._request.start()

    def _read_store(self) -> None:
        with suppress(RunError):  # the store is away: the next upload reports it
            if self._is_on_store():
                self._seen = True

    def _is_on_store(self) -> bool:
        return self._place is not None and self._place.store.entry(self._place.name) is not None
