"""The Pareto front of a run's search, read from its study."""

from __future__ import annotations

from pathlib import Path

from cdn_tune.errors import RunError
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.study.ranking import pareto_front


def front_trials(run: Path) -> list[int]:
    """Returns the numbers of the trials on the Pareto front, best in the first objective first.

    Raises:
        RunError: If the folder is no search run, its study cannot be read, or no trial is complete.
    """
    record = read_record(run)
    front = [trial.number for trial in pareto_front(record.entries, record.directions)]
    if not front:
        raise RunError(f"{run}: no trial is complete, so there is no Pareto front; let the search run on")
    return front
