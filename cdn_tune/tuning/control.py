"""How a search is asked to stop: a file in its run folder, seen by the driver and by every trial."""

from __future__ import annotations

import time
from pathlib import Path

from cdn_tune.tuning.layout import STOP

_LOOK_SECONDS = 0.5


class StopFile:
    """Tells whether somebody has asked a search to stop; looks at the disk now and then.

    Args:
        run: The run folder.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / STOP
        self._asked, self._looked = False, -_LOOK_SECONDS

    def __call__(self) -> bool:
        """Returns whether the search was asked to stop."""
        if not self._asked and time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._asked = self._path.exists()
        return self._asked


def ask_to_stop(run: Path) -> None:
    """Asks the search in a run folder to stop: its trials save a checkpoint, and the same command goes on."""
    (run / STOP).touch()


def withdraw(run: Path) -> None:
    """Takes back what an earlier search was asked."""
    (run / STOP).unlink(missing_ok=True)
