"""A flag that one process raises and others see, on any machine: a file, and an object at the run's home."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from cdn_tune.errors import RunError
from cdn_tune.training.object_store.working_copy import place_of

_LOOK_SECONDS = 0.5
_HOME_SECONDS = 3.0  # an object store is asked so often


class Flag:
    """Tells whether a flag was raised; looks at the disk now and then, and at the run's home less often.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._place = path, place_of(path)
        self._seen, self._looked, self._home_looked = False, -_LOOK_SECONDS, -_HOME_SECONDS
        self._look: threading.Thread | None = None

    def __call__(self) -> bool:
        """Returns whether it was raised, as far as is known; asked after every step of a training."""
        if not self._seen and time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._seen = self._path.exists()
            self._look_at_home()
        return self._seen

    def is_raised(self) -> bool:
        """Looks now, everywhere."""
        return self._path.exists() or (self._place is not None and self._place.home.entry(self._place.name) is not None)

    def raise_it(self) -> None:
        """Raises it for everybody."""
        self._path.touch()
        if self._place is not None:
            self._place.home.write(self._place.name, b"raised")

    def lower(self) -> None:
        """Takes it back."""
        self._path.unlink(missing_ok=True)
        if self._place is not None:
            self._place.home.delete(self._place.name)

    def _look_at_home(self) -> None:
        """Looks there in a thread, so that a training does not wait for the network."""
        if self._place is None or time.monotonic() - self._home_looked < _HOME_SECONDS:
            return
        if self._look is None or not self._look.is_alive():
            self._home_looked = time.monotonic()
            self._look = threading.Thread(target=self._ask_home, daemon=True, name="cdn-tune-flag")
            self._look.start()

    def _ask_home(self) -> None:
        with suppress(RunError):  # the store is away: whoever saves there says so
            if self._place is not None and self._place.home.entry(self._place.name) is not None:
                self._seen = True
