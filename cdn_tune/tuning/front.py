"""The Pareto front of a run's search, read from its study."""

from __future__ import annotations

from pathlib import Path

import optuna

from cdn_tune.config.yaml import read_mapping
from cdn_tune.errors import RunError
from cdn_tune.training.run_folder import SPACE, read_manifest
from cdn_tune.tuning.ranking import pareto_front
from cdn_tune.tuning.study import DATABASE


def front_trials(run: Path) -> list[int]:
    """Returns the numbers of the trials on the Pareto front, best in the first objective first.

    Raises:
        RunError: If the folder is no search run, its study cannot be read, or no trial is complete.
    """
    if read_manifest(run)["kind"] != "search":
        raise RunError(f"{run}: is no search run, so it has no Pareto front; drop --front")
    database = run / DATABASE
    if not database.exists():
        raise RunError(f"{database}: no such study; name the run's best checkpoints with --top instead")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        name = str(read_mapping(run / SPACE)["name"])
        study = optuna.load_study(study_name=name, storage=f"sqlite:///{database}")
        front = [trial.number for trial in pareto_front(study.get_trials(deepcopy=False), study.directions)]
    except Exception as error:  # SQLAlchemy's and Optuna's errors have no base in common
        raise RunError(
            f"{database}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from None
    if not front:
        raise RunError(f"{run}: no trial is complete, so there is no Pareto front; let the search run on")
    return front
