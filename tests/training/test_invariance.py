"""One, two and three workers train alike and evaluate identically (gloo processes on this machine, without Ray)."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.config import Experiment
from cdn_tune.training.runs.checkpoint import LAST, read_checkpoint
from cdn_tune.training.train_trial import train_in

Tiny = Callable[..., Experiment]
Train = Callable[[Experiment, Path], list[list[Any]]]

WORKER = """
import json, sys
from pathlib import Path
import torch.distributed as dist
from cdn_tune.config import Experiment
from cdn_tune.training.train_trial import train_in

dist.init_process_group("gloo", rank=int(sys.argv[1]), world_size=int(sys.argv[2]))
for line in sys.stdin:
    plain, folder = json.loads(line)
    reports = []
    train_in(Experiment.model_validate(plain, strict=False), Path(folder), reports.append, threads=1)
    print(json.dumps([report.plain() for report in reports]), flush=True)
dist.destroy_process_group()
"""


def seen(reports: list[dict[str, Any]]) -> list[list[Any]]:
    """Returns losses, gradient norm and val metrics per epoch."""
    return [
        [*(report[name] for name in report if "loss" in name), report["gradient_norm"], report["val"]]
        for report in reports
    ]


def train_alone(experiment: Experiment, folder: Path) -> list[list[Any]]:
    reports: list[Any] = []
    train_in(experiment, folder, reports.append, threads=1)
    return seen([report.plain() for report in reports])


@contextmanager
def workers(count: int) -> Iterator[Train]:
    """Starts processes that train together, one experiment after the other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(count)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]

    def train(experiment: Experiment, folder: Path) -> list[list[Any]]:
        for process in processes:
            print(json.dumps([experiment.plain(), str(folder)]), file=process.stdin, flush=True)
        first, *others = [process.stdout.readline() for process in processes]
        assert others == ["[]\n"] * (count - 1)  # worker 0 reports
        return seen(json.loads(first))

    try:
        yield train
        for process in processes:
            process.communicate(timeout=60)
            assert process.returncode == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def two() -> Iterator[Train]:
    with workers(2) as train:
        yield train


@pytest.mark.slow
def test_three_workers_train_as_one_does(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"train.epochs": 4, "model.map.mixing_dropout": 0.0, "optim.lr": 1e-3})
    with workers(3) as train:
        agree(train(experiment, tmp_path / "3"), train_alone(experiment, tmp_path / "1"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.batch_size": 7, "train.micro_batch": 2, "model.map.batch_norm": False},  # uneven, in pieces
        {"train.augment": {"crop": 0.5, "shift": 0.5, "negative": 0.3}},
    ],
    ids=["whole", "pieces", "augmented"],
)
def test_workers_do_not_matter(tiny: Tiny, tmp_path: Path, two: Train, changes: dict[str, Any]) -> None:
    experiment = tiny(**{"train.epochs": 4, "model.map.mixing_dropout": 0.0, "optim.lr": 1e-3, **changes})
    agree(two(experiment, tmp_path / "2"), train_alone(experiment, tmp_path / "1"))


SNAG: dict[str, Any] = {
    "model.name": "snag",
    "model.text": {"hidden": 8, "layers": 1, "dropout": 0.0, "path_dropout": 0.0},
    "model.video": {"hidden": 8, "levels": 3, "length": 32, "dropout": 0.0, "path_dropout": 0.0},
    "model.fusion": {"layers": 1, "dropout": 0.0, "path_dropout": 0.0},
    "data.sequence": {"form": "variable", "length": 32, "crop": [0.6, 0.9], "queries": 3},
    "loss.normaliser_momentum": 0.5,
    "train.batch_size": 3,
    "train.ema": 0.9,
}


MMN: dict[str, Any] = {
    "model.name": "mmn",
    "model.clips": 8,
    "model.hidden": 8,
    "model.joint": 8,
    "model.map": {"layers": 2, "kernel_size": 3},
    "loss.contrastive_weight": 1.0,
}
CONTRASTIVE: dict[str, Any] = {"model.contrastive": True, "model.map_scales": 2, "model.map.mixing_dropout": 0.0}


@pytest.mark.parametrize("changes", [MMN, CONTRASTIVE], ids=["mmn", "cdn"])
def test_workers_do_not_matter_to_contrast(tiny: Tiny, tmp_path: Path, two: Train, changes: dict[str, Any]) -> None:
    """Videos are shared out with all their queries; each is contrasted with those of all workers.

    Metrics are left out: a bias before BatchNorm has no gradient but rounding, which Adam makes steps of, and the
    running means that evaluation uses follow it.
    """
    experiment = tiny(**changes, **{"train.batch_of": "videos", "train.batch_size": 5, "optim.lr": 1e-3})
    found, expected = two(experiment, tmp_path / "2"), train_alone(experiment, tmp_path / "1")
    for mine, theirs in zip(found, expected, strict=True):
        assert mine[:-1] == pytest.approx(theirs[:-1], rel=1e-4)


def test_contrast_across_workers_knows_a_video_that_several_have(tiny: Tiny, tmp_path: Path, two: Train) -> None:
    """In a batch of queries a video may be read by both: its moments count once, its sentences know each other."""
    experiment = tiny(**CONTRASTIVE, **{"model.map.batch_norm": False, "optim.lr": 1e-3})
    agree(two(experiment, tmp_path / "2"), train_alone(experiment, tmp_path / "1"))


def test_workers_do_not_matter_to_sequences(tiny: Tiny, tmp_path: Path, two: Train) -> None:
    """Videos are shared out with their queries, in pieces; the loss is divided by what all workers' batches have."""
    experiment = tiny(**SNAG, **{"train.epochs": 3, "optim.lr": 1e-3, "train.micro_batch": 2})
    found, expected = two(experiment, tmp_path / "2"), train_alone(experiment, tmp_path / "1")
    for mine, theirs in zip(found, expected, strict=True):
        assert mine[:-1] == pytest.approx(theirs[:-1], rel=1e-4)
        assert mine[-1] == pytest.approx(theirs[-1], rel=1e-3)  # moments may end anywhere


def agree(found: list[list[Any]], expected: list[list[Any]]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine[:-1] == pytest.approx(theirs[:-1], rel=1e-4)
        assert mine[-1] == theirs[-1]


def test_a_trial_goes_on_with_other_workers(tiny: Tiny, tmp_path: Path, two: Train) -> None:
    """One worker, stopped within an epoch, then two: epochs, order and steps go on where they were."""
    whole = tiny(**{"train.epochs": 4, "model.map.mixing_dropout": 0.0})
    expected = two(whole, tmp_path / "whole")
    folder = tmp_path / "changed"
    asked = iter([False] * 12 + [True])
    with pytest.raises(KeyboardInterrupt):
        train_in(whole, folder, lambda _: None, threads=1, stop=lambda: next(asked))
    assert read_checkpoint(folder / LAST)["within"] is not None
    for mine, theirs in zip(two(whole, folder), expected, strict=True):
        assert mine[:-1] == pytest.approx(theirs[:-1], rel=1e-3)
