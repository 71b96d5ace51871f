"""One, two and three workers train alike and evaluate identically (gloo processes on this machine, without Ray)."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.config import Experiment
from cdn_tune.training.runs.checkpoint import LAST, read_checkpoint

Tiny = Callable[..., Experiment]

WORKER = """
import json, sys
from pathlib import Path
import torch.distributed as dist
from cdn_tune.config import Experiment
from cdn_tune.training.train_trial import train_in

experiment = Experiment.model_validate(json.loads(sys.argv[1]), strict=False)
if int(sys.argv[4]) > 1:
    dist.init_process_group("gloo", rank=int(sys.argv[3]), world_size=int(sys.argv[4]))
reports = []
train_in(experiment, Path(sys.argv[2]), reports.append, threads=1)
if sys.argv[3] == "0":
    out = [[each.loss, *each.losses.values(), each.gradient_norm, each.val] for each in reports]
    Path(sys.argv[2], "seen.json").write_text(json.dumps(out))
if dist.is_initialized():
    dist.destroy_process_group()
"""


def train_with(workers: int, experiment: Experiment, folder: Path) -> list[list[Any]]:
    """Trains on so many processes; returns losses, gradient norm and val metrics per epoch."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    plain = json.dumps(experiment.plain())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, plain, str(folder), str(rank), str(workers)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(workers)
    ]
    try:
        errors = [process.communicate(timeout=150)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert not any(process.returncode for process in processes), errors
    epochs: list[list[Any]] = json.loads((folder / "seen.json").read_text())
    return epochs


@pytest.mark.parametrize(
    ("workers", "changes"),
    [
        pytest.param((2, 3), {"train.batch_size": 8}, marks=pytest.mark.slow),
        ((2,), {"train.batch_size": 7, "train.micro_batch": 2, "model.map.batch_norm": False}),  # uneven, in pieces
    ],
    ids=["whole", "pieces"],
)
def test_workers_do_not_matter(tiny: Tiny, tmp_path: Path, workers: tuple[int, ...], changes: dict[str, Any]) -> None:
    experiment = tiny(**{"train.epochs": 4, "model.map.mixing_dropout": 0.0, "optim.lr": 1e-3, **changes})
    expected = train_with(1, experiment, tmp_path / "1")
    for count in workers:
        found = train_with(count, experiment, tmp_path / str(count))
        for mine, theirs in zip(found, expected, strict=True):
            assert mine[:4] == pytest.approx(theirs[:4], rel=1e-4)
            assert mine[4] == theirs[4]


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


def test_workers_do_not_matter_to_sequences(tiny: Tiny, tmp_path: Path) -> None:
    """Videos are shared out with their queries, in pieces; the loss is divided by what all workers' batches have."""
    experiment = tiny(**SNAG, **{"train.epochs": 3, "optim.lr": 1e-3, "train.micro_batch": 2})
    expected, found = (train_with(count, experiment, tmp_path / str(count)) for count in (1, 2))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine[:4] == pytest.approx(theirs[:4], rel=1e-4)
        assert mine[4] == pytest.approx(theirs[4], rel=1e-3)  # moments may end anywhere


def test_a_trial_goes_on_with_other_workers(tiny: Tiny, tmp_path: Path) -> None:
    """Two workers, then one: epochs, order and steps go on where they were."""
    whole = tiny(**{"train.epochs": 4, "model.map.mixing_dropout": 0.0})
    expected = train_with(2, whole, tmp_path / "whole")
    folder = tmp_path / "changed"
    worker = WORKER.replace(
        "train_in(experiment, Path(sys.argv[2]), reports.append, threads=1)",
        """
asked = iter([False] * 12 + [True])
try:
    train_in(experiment, Path(sys.argv[2]), reports.append, threads=1, stop=lambda: next(asked))
except KeyboardInterrupt:
    sys.exit(0)
""",
    )
    assert worker != WORKER
    command = [sys.executable, "-c", worker, json.dumps(whole.plain()), str(folder), "0", "1"]
    subprocess.run(command, check=True, timeout=100, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert read_checkpoint(folder / LAST)["within"] is not None
    found = train_with(2, whole, folder)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine[:4] == pytest.approx(theirs[:4], rel=1e-3)
