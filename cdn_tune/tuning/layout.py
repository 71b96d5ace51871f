"""The files of a search's run folder: their names, and the request to stop."""

from pathlib import Path

from cdn_tune.training.runs.stop_flag import StopFlag

JOURNAL = "study.journal"
DATABASE = "study.db"  # in place of the journal, in runs that an earlier version began
TRIALS = "trials"
RAY_LOG = "ray.log"
STOP = ".stop"
UNFIT = "unfit_nodes"  # attribute of the study: a line for each node that takes no trials


class StopFile(StopFlag):
    """The request to stop a search, seen by its driver and by every trial; the same command later continues it."""

    def __init__(self, run: Path) -> None:
        super().__init__(run / STOP)


def trial_folder(run: Path, number: int) -> Path:
    """Returns a trial's folder in the run folder."""
    return run / TRIALS / f"{number:04d}"


def study_url(run: Path) -> str:
    """Returns the storage URL of a run folder's own study: its journal, unless it holds a database."""
    return f"sqlite:///{run / DATABASE}" if (run / DATABASE).exists() else f"journal:///{run / JOURNAL}"
