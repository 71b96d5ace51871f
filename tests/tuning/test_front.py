"""The Pareto front of a run, read from its study."""

from pathlib import Path

import optuna
import pytest

from cdn_tune.config.yaml import dump
from cdn_tune.errors import RunError
from cdn_tune.training.run_folder import claim, locked
from cdn_tune.tuning.front import front_trials


def search_run(run: Path, kind: str = "search") -> None:
    with locked(run):
        claim(run, {"kind": kind}, {})
    (run / "search_space.yaml").write_text(dump({"name": "s"}))


def test_trials_that_nothing_beats(tmp_path: Path) -> None:
    search_run(tmp_path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="s", storage=f"sqlite:///{tmp_path / 'study.db'}", directions=["maximize", "minimize"]
    )
    for values in ([0.5, 3.0], [0.9, 9.0], [0.4, 4.0], [0.7, 5.0]):
        study.add_trial(optuna.trial.create_trial(values=values))
    assert front_trials(tmp_path) == [1, 3, 0]


def test_what_has_no_front_is_told(tmp_path: Path) -> None:
    search_run(tmp_path / "train", "train")
    with pytest.raises(RunError, match="no search run"):
        front_trials(tmp_path / "train")
    search_run(tmp_path / "new")
    with pytest.raises(RunError, match="no such study"):
        front_trials(tmp_path / "new")
    (tmp_path / "new/study.db").write_bytes(b"not a database, not at all")
    with pytest.raises(RunError, match=r"study\.db: cannot be read") as caught:
        front_trials(tmp_path / "new")
    assert "\n" not in str(caught.value)
