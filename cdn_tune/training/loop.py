"""The training loop: one trial, from the first epoch or from where it was left."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from cdn_tune.config import Experiment
from cdn_tune.data.annotations import Split
from cdn_tune.data.dataset import MomentDataset
from cdn_tune.errors import CheckpointError, ConfigError
from cdn_tune.model import CDN
from cdn_tune.training.checkpoint import build_model, load_weights, read_checkpoint, save_checkpoint
from cdn_tune.training.engine import Engine, global_batches
from cdn_tune.training.evaluation import evaluate_split
from cdn_tune.training.optimiser import Schedule, build_optimiser
from cdn_tune.training.precision import resolve_precision
from cdn_tune.training.records import Records
from cdn_tune.training.report import EpochReport, OnStep, Report, ignore
from cdn_tune.training.world import World, this_world

LAST = Path("checkpoints/last.pt")
BEST = Path("checkpoints/best.pt")


@dataclass(frozen=True)
class TrainResult:
    """How a trial ended.

    Attributes:
        best_value: Best val metric.
        best_epoch: Its epoch.
        epochs_run: Epochs trained by this call; 0 if the trial was already finished.
    """

    best_value: float
    best_epoch: int
    epochs_run: int


@dataclass
class _Progress:
    """Where a trial stands."""

    history: list[EpochReport] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """The last finished epoch; 0 before the first."""
        return len(self.history)

    @property
    def best_value(self) -> float:
        """Best val metric so far; below every metric before the first epoch."""
        return self.history[-1].best_value if self.history else -1.0

    @property
    def best_epoch(self) -> int:
        """The epoch of that."""
        return self.history[-1].best_epoch if self.history else 0


def train(
    experiment: Experiment,
    folder: Path,
    report: Report,
    splits: Mapping[Split, MomentDataset],
    on_step: OnStep = ignore,
    planted: bool = False,
) -> TrainResult:
    """Trains one trial; called on every one of its workers.

    Files in `folder`: ``checkpoints/last.pt`` (to go on exactly), ``checkpoints/best.pt`` (the model of the best
    epoch on val), ``metrics.jsonl`` and TensorBoard events. A trial whose ``last.pt`` exists goes on after its epoch.

    Args:
        experiment: What to train.
        folder: The trial's folder.
        report: Called by worker 0 after every epoch, when its checkpoint is on disk; also for the epochs that a trial
            taken up again had finished before. It may raise to end the trial.
        splits: The train and val splits.
        on_step: Called by worker 0 after every optimiser step.
        planted: Whether the data are planted; recorded in the checkpoints.

    Raises:
        TrainingError: If the loss is not finite.
        CheckpointError: If the folder's checkpoint is damaged or of another experiment.
    """
    world = this_world()
    if world.is_main:
        for left in (folder / LAST).parent.glob(".*.tmp"):  # a write that was killed
            left.unlink()
    _check_sizes(experiment, splits, world)
    seed_everything(experiment.seed, world.rank)
    dtype = resolve_precision(experiment.train.precision, world.device)
    model = build_model(experiment).to(world.device)
    optimiser = build_optimiser(model, experiment.optim)
    steps = len(global_batches(len(splits["train"]), experiment, 1, world))
    schedule = Schedule(optimiser, experiment.optim, steps * experiment.train.epochs)
    progress = _resume(experiment, folder, model, optimiser, schedule, world)
    engine = Engine(experiment, _wrap(model, experiment, world), optimiser, schedule, world, dtype)
    first = progress.epoch
    on_step = on_step if world.is_main else ignore
    with Records(folder, progress.history, enabled=world.is_main) as records:
        if world.is_main:
            for past in progress.history:
                report(past)
        for epoch in range(first + 1, experiment.train.epochs + 1):
            totals = engine.run_epoch(splits["train"], epoch, on_step)
            start = time.perf_counter()
            val = evaluate_split(model, splits["val"], experiment.eval, world, dtype).metrics
            value = val[experiment.eval.metric]
            improved = value > progress.best_value
            done = EpochReport(
                epoch=epoch,
                epochs=experiment.train.epochs,
                loss=totals.loss,
                moment_loss=totals.moment_loss,
                attention_loss=totals.attention_loss,
                learning_rate=schedule.learning_rate,
                gradient_norm=totals.gradient_norm,
                samples_per_second=totals.queries / totals.seconds,
                train_seconds=totals.seconds,
                val_seconds=time.perf_counter() - start,
                val=val,
                value=value,
                best_value=value if improved else progress.best_value,
                best_epoch=epoch if improved else progress.best_epoch,
            )
            progress.history.append(done)
            _save(experiment, folder, model, optimiser, schedule, progress, world, planted)
            if world.is_main:
                records.write(done)
                report(done)
    world.barrier()
    return TrainResult(progress.best_value, progress.best_epoch, progress.epoch - first)


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seeds the generators that dropout and libraries draw from; each worker gets its own stream."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)  # noqa: NPY002 - libraries use it
    torch.manual_seed(seed + rank)


def _check_sizes(experiment: Experiment, splits: Mapping[Split, MomentDataset], world: World) -> None:
    for key, size in (("train.batch_size", experiment.train.batch_size), ("train split", len(splits["train"]))):
        if size < world.size:
            raise ConfigError(f"{key}={size} is smaller than the number of workers, {world.size}; use fewer workers")


def _wrap(model: CDN, experiment: Experiment, world: World) -> torch.nn.Module:
    wrapped: torch.nn.Module = model
    if world.size > 1:
        ids = [world.device.index] if world.device.type == "cuda" else None
        # Batch statistics are the global batch's (model/norm.py): there are no buffers to broadcast.
        wrapped = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
    return torch.compile(wrapped) if experiment.train.compile else wrapped  # type: ignore[return-value]


def _save(
    experiment: Experiment,
    folder: Path,
    model: CDN,
    optimiser: torch.optim.Optimizer,
    schedule: Schedule,
    progress: _Progress,
    world: World,
    planted: bool,
) -> None:
    """Writes `best` if the epoch is the best so far, then `last`: a trial taken up again never lacks its best."""
    generators = world.gather(_generator_state(world))
    if not world.is_main:
        return
    weights = model.state_dict()
    if progress.best_epoch == progress.epoch:
        best = {"model": weights, "epoch": progress.epoch, "val": progress.history[-1].val, "planted": planted}
        save_checkpoint(folder / BEST, experiment, best)
    last: dict[str, Any] = {
        "model": weights,
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "generators": generators,
        "history": [report.plain() for report in progress.history],
    }
    save_checkpoint(folder / LAST, experiment, last)


def _resume(
    experiment: Experiment,
    folder: Path,
    model: CDN,
    optimiser: torch.optim.Optimizer,
    schedule: Schedule,
    world: World,
) -> _Progress:
    path = folder / LAST
    if not path.exists():
        return _Progress()
    content = read_checkpoint(path)
    if content["experiment"] != experiment.plain():
        raise CheckpointError(f"{path}: belongs to another experiment; choose another folder")
    load_weights(model, content["model"], path)
    optimiser.load_state_dict(content["optimiser"])
    schedule.load_state_dict(content["schedule"])
    generators = content["generators"]
    if len(generators) == world.size:
        _restore_generators(generators[world.rank], world)
    return _Progress([EpochReport(**report) for report in content["history"]])


def _generator_state(world: World) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(world.device)
    return state


def _restore_generators(state: dict[str, torch.Tensor], world: World) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and world.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], world.device)
