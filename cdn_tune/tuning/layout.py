"""Names in a search's run folder."""

from __future__ import annotations

from pathlib import Path

DATABASE = "study.db"
TRIALS = "trials"
RAY_LOG = "ray.log"
STOP = ".stop"  # asks the search to stop
UNFIT = "unfit_nodes"  # attribute of the study: a line for each node that takes no trials


def trial_folder(run: Path, number: int) -> Path:
    """Returns a trial's folder in the run folder."""
    return run / TRIALS / f"{number:04d}"


def sqlite_url(run: Path) -> str:
    """Returns the storage URL of a run folder's own study."""
    return f"sqlite:///{run / DATABASE}"
