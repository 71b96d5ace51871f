"""The published experiments of SnAG: sizes, and two real steps of each on planted features of its size, but shorter."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdn_tune.config import load_experiment
from cdn_tune.data.dataset import SequenceDataset
from cdn_tune.data.planted import plant
from cdn_tune.training.memory.estimate import count_parameters
from cdn_tune.training.plan import make_plan
from cdn_tune.training.reports import EpochReport, StepReport
from cdn_tune.training.train_trial import open_data, train_in

ROOT = Path(__file__).resolve().parents[2] / "experiments"
PARAMETERS = {  # as published
    "charades/SnAG-256-L6-C3D": 10_408_073,
    "charades/SnAG-256-L6-I3D": 9_883_785,
    "tacos/SnAG-2304-L8-C3D": 11_202_187,
    "activitynet/SnAG-256-L7-C3D": 3_228_042,
}


def test_all_are_tested() -> None:
    assert {path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.rglob("SnAG*")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_takes_two_steps(name: str, tmp_path: Path) -> None:
    full = load_experiment(ROOT / f"{name}.yaml")
    assert count_parameters(full) == PARAMETERS[name]
    root = tmp_path / "data"
    plant(root, videos=4, feature_size=full.data.feature_size, word_size=300, frame_rate=1.0)
    small: dict[str, Any] = {
        "data.dataset": "charades_sta",
        "data.root": str(root),
        "data.word_vectors": next(root.glob("glove*.txt")).name,
        "data.val_fraction": 0.5,
        "data.sequence.length": 64,
        "data.sequence.queries": 1,
        "data.sequence.groups": "all",
        "train.epochs": 1,
        "train.eval_queries": 1,
    }
    dataset = open_data(load_experiment(ROOT / f"{name}.yaml", small).data, sequences=True)["train"]
    assert isinstance(dataset, SequenceDataset)
    samples = len(dataset.samples(np.random.default_rng(0)))
    experiment = load_experiment(ROOT / f"{name}.yaml", small | {"train.batch_size": samples // 2})
    assert (experiment.model, experiment.loss, experiment.optim) == (full.model, full.loss, full.optim)
    steps: list[StepReport] = []
    reports: list[EpochReport] = []
    train_in(experiment, tmp_path / "run", reports.append, steps.append)
    assert len(steps) == reports[0].steps >= 2
    assert all(math.isfinite(step.loss) for step in steps)
    assert reports[0].gradient_norm > 0
    plan = make_plan(experiment, open_data(experiment.data, sequences=True))
    assert (plan.parameters, plan.steps_per_epoch) == (PARAMETERS[name], len(steps))
    assert plan.micro_batch == plan.batch == experiment.train.batch_size
