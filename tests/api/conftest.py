"""A finished train run, trained once from Python and copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import cdn_tune
from cdn_tune.config import Experiment


@pytest.fixture(scope="session")
def finished_api(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def trained(tiny: Callable[..., Experiment], finished_api: Path, tmp_path: Path) -> Path:
    """A finished train run of two epochs."""
    if not finished_api.exists():
        cdn_tune.train(tiny(**{"train.epochs": 2}), run=finished_api)
    return Path(shutil.copytree(finished_api, tmp_path / "trained"))
