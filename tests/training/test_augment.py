"""Training with augmentation: the train split alone is changed, for every family whose loss allows it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.config import Experiment
from cdn_tune.training.reports import EpochReport
from cdn_tune.training.train_trial import train_in

Tiny = Callable[..., Experiment]
SMALL: dict[str, dict[str, Any]] = {
    "cdn": {},
    "tan": {"model.query.hidden": 8, "model.query.layers": 1, "model.map.layers": 1, "model.map.kernel_size": 3},
    "mmn": {"model.joint": 8, "model.map.layers": 1, "model.map.kernel_size": 3},
}


def trained(experiment: Experiment, folder: Path) -> EpochReport:
    reports: list[EpochReport] = []
    train_in(experiment, folder, reports.append)
    return reports[-1]


@pytest.mark.parametrize("family", SMALL)
def test_the_train_split_alone_is_changed(tiny: Tiny, tmp_path: Path, family: str) -> None:
    """At a learning rate of nearly nothing val stays as it is, while the training loss is of other queries."""
    small = {"model.name": family, "model.clips": 8, "model.hidden": 8, **SMALL[family]}
    small |= {"optim.lr": 1e-12, "train.epochs": 1}
    plain = trained(tiny(**small), tmp_path / "plain")
    kinds = ("crop", "shift") if family == "mmn" else ("crop", "shift", "negative")
    losses = {plain.loss}
    for kind in kinds:
        found = trained(tiny(**{**small, f"train.augment.{kind}": 1.0}), tmp_path / kind)
        losses.add(found.loss)
        if family == "tan":  # the others keep running statistics of the train split
            assert found.val == plain.val
    assert len(losses) == 1 + len(kinds)
    assert all(0 < loss < 10 for loss in losses)
