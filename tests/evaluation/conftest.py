"""A finished train run, trained once and copied for each test."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cdn_tune.config import Experiment
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.training.reports import ignore
from cdn_tune.training.runs.run_folder import claim, describe_run, locked
from cdn_tune.training.train_trial import train_in


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the trained run is kept; empty at first."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def trained(tiny: Callable[..., Experiment], finished: Path, tmp_path: Path) -> Path:
    """A finished train run."""
    if not finished.exists():
        experiment = tiny(**{"train.epochs": 2})
        with locked(finished):
            manifest = describe_run("train", experiment, fingerprint(experiment.data))
            claim(finished, manifest, {"experiment.yaml": experiment.plain()})
            train_in(experiment, finished, ignore)
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"
