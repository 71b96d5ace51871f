"""Names in a search's run folder."""

from __future__ import annotations

from pathlib import Path

JOURNAL = "study.journal"
DATABASE = "study.db"  # in place of the journal, in runs that an earlier version began
TRIALS = "trials"
RAY_LOG = "ray.log"
STOP = ".stop"  # asks the search to stop
UNFIT = "unfit_nodes"  # attribute of the study: a line for each node that takes no trials


def trial_folder(run: Path, number: int) -> Path:
    """Returns a trial's folder in the run folder."""
    return run / TRIALS / f"{number:04d}"


def study_url(run: Path) -> str:
    """Returns the storage URL of a run folder's own study: its journal, unless it holds a database."""
    return f"sqlite:///{run / DATABASE}" if (run / DATABASE).exists() else f"journal:///{run / JOURNAL}"
