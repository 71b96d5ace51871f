"""The Pareto front of a run, read from its study."""

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from cdn_tune.config import Experiment
from cdn_tune.errors import RunError
from cdn_tune.training.runs.run_folder import claim, locked
from cdn_tune.tuning.results.record import front_trials

Tiny = Callable[..., Experiment]
SPACE = {
    "name": "s",
    "experiment": "experiment.yaml",
    "parameters": {"optim.lr": {"type": "float", "low": 0.001, "high": 0.01}},
    "objectives": [{"metric": "R1@0.5"}, {"metric": "parameters"}],
}


@pytest.fixture
def search_run(tiny: Tiny, tmp_path: Path) -> Path:
    """A search run with two objectives, whose study is not made yet."""
    with locked(tmp_path):
        claim(tmp_path, {"kind": "search"}, {"experiment.yaml": tiny().plain(), "search_space.yaml": SPACE})
    return tmp_path


def test_trials_that_nothing_beats(search_run: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="s", storage=f"sqlite:///{search_run / 'study.db'}", directions=["maximize", "minimize"]
    )
    for values in ([0.5, 3.0], [0.9, 9.0], [0.4, 4.0], [0.7, 5.0]):
        study.add_trial(optuna.trial.create_trial(values=values))
    assert front_trials(search_run) == [1, 3, 0]


def test_what_has_no_front_is_told(search_run: Path) -> None:
    with pytest.raises(RunError, match="study"):
        front_trials(search_run)
    optuna.create_study(
        study_name="s", storage=f"sqlite:///{search_run / 'study.db'}", directions=["maximize", "minimize"]
    )
    with pytest.raises(RunError, match="no trial is complete"):
        front_trials(search_run)
    with locked(search_run / "train"):
        claim(search_run / "train", {"kind": "train"}, {})
    with pytest.raises(RunError, match="is a train run"):
        front_trials(search_run / "train")
