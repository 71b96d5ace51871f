"""What tests share: a tiny planted dataset, a tiny experiment, one Ray for the session."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests never touch the user's cache; set here so that the processes they start have it too.
os.environ["CDN_TUNE_CACHE"] = tempfile.mkdtemp(prefix="cdn-tune-tests-")

import pytest
import torch

from cdn_tune.config import Experiment, override
from cdn_tune.data.planted import plant

torch.set_num_threads(1)
atexit.register(shutil.rmtree, os.environ["CDN_TUNE_CACHE"], ignore_errors=True)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "dataset": "charades_sta",
        "root": "",
        "feature_size": 16,
        "frames": 16,
        "word_vectors": "glove.planted.12d.txt",
        "word_size": 12,
        "val_fraction": 0.3,
    },
    "model": {
        "clips": 8,
        "hidden": 8,
        "query": {"layers": 1},
        "attention_steps": 2,
        "attention_size": 8,
        "map": {"layers": 2, "kernel_size": 3, "dynamic_layers": 1, "experts": 2},
    },
    "optim": {"lr": 3e-3},
    "train": {"epochs": 3, "batch_size": 8},
    "eval": {"recalls": [1, 5], "ious": [0.3, 0.5], "batch_size": 16},
}


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted dataset of a few videos."""
    root = tmp_path_factory.mktemp("data") / "planted"
    plant(root, videos=24, feature_size=16, word_size=12, frame_rate=2.0, seed=1)
    return root


@pytest.fixture
def tiny(planted: Path) -> Callable[..., Experiment]:
    """Makes tiny experiments on the planted data: ``tiny(**{"optim.lr": 0.1})``."""

    def make(**overrides: Any) -> Experiment:
        return override({**TINY, "data": {**TINY["data"], "root": str(planted)}}, overrides, "tiny")

    return make


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of two CPUs that the tests of the session share."""
    from cdn_tune.distributed.cluster import connected

    with connected():
        yield
