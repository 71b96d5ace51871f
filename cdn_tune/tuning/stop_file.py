"""How a search is asked to stop: a flag in its run folder, seen by the driver and by every trial."""

from __future__ import annotations

from pathlib import Path

from cdn_tune.training.runs.stop_flag import StopFlag
from cdn_tune.tuning.layout import STOP


class StopFile(StopFlag):
    """Tells whether somebody has asked a search to stop.

    Args:
        run: The run folder.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(run / STOP)


def ask_to_stop(run: Path) -> None:
    """Asks the search in a run folder to stop: its trials save a checkpoint, and the same command goes on."""
    StopFile(run).raise_it()


def is_asked(run: Path) -> bool:
    """Returns whether the search in a run folder is asked to stop."""
    return StopFile(run).is_raised()


def withdraw(run: Path) -> None:
    """Takes back what an earlier search was asked."""
    StopFile(run).lower()
