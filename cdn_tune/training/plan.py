"""What a trial will take: sizes, steps, memory, and hours by a few measured steps. Writes no file."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from cdn_tune.config import Experiment
from cdn_tune.data.annotations import Split
from cdn_tune.data.batches import Samples, largest, pieces, prefetch
from cdn_tune.data.dataset import Batch, MomentDataset
from cdn_tune.model.family import MomentModel
from cdn_tune.training.evaluate.evaluation import evaluate_split
from cdn_tune.training.kernels.choose import choose_products
from cdn_tune.training.memory.device import available_bytes, fit_micro_batch, peak_bytes
from cdn_tune.training.memory.estimate import MemoryEstimate, checkpoint_bytes, estimate
from cdn_tune.training.runs.checkpoint import build_model
from cdn_tune.training.step.batch_loss import batch_loss, resolve_precision, use_tf32
from cdn_tune.training.step.optimiser import build_optimiser
from cdn_tune.training.step.process_group import this_world
from cdn_tune.training.step.steps import global_batches, queries_at_once
from cdn_tune.training.step.threads import threads_for, torch_threads

_LEAST = 2  # measured steps


@dataclass(frozen=True)
class Plan:
    """What a trial will take on one worker."""

    device: str  # where it was measured
    dtype: str  # format of the forward pass
    parameters: int  # number of the model's parameters
    memory: MemoryEstimate
    available_bytes: int  # before anything of the trial was built
    base_bytes: int  # most memory in use before anything of the trial was built: on a CPU Python, libraries and data
    peak_bytes: int  # most memory in use until it was measured
    batch: int  # queries of a step, at most
    samples: int  # queries or videos of a step, as `train.batch_of` says
    micro_batch: int  # of these, how many are computed at once
    queries: Mapping[Split, int]  # of each split
    videos: Mapping[Split, int]  # of each split
    epoch_queries: int  # that an epoch trains on
    steps_per_epoch: int  # optimiser steps
    total_steps: int  # optimiser steps in all epochs
    measured_steps: int  # how many steps were timed
    seconds_per_step: float  # median of the measured steps, their batches assembled meanwhile
    val_seconds: float  # of one evaluation of val, by a few queries
    seconds_per_epoch: float  # its steps, and its share of the evaluations
    seconds: float  # all epochs
    checkpoint_bytes: int  # most that the trial's checkpoints occupy on disk


def make_plan(
    experiment: Experiment,
    splits: Mapping[Split, MomentDataset],
    measured_steps: int = 3,
    threads: int | None = None,
) -> Plan:
    """Plans a trial: builds it, and times at least two real steps with it after one that is not counted.

    `threads` are the worker's CPU threads; as many as `threads_for` returns if None.

    Raises:
        MemoryShortage: If not even one query at once fits into memory.
    """
    with torch_threads(threads or threads_for(experiment)):
        return _measured(experiment, splits, max(measured_steps, _LEAST))


def _measured(experiment: Experiment, splits: Mapping[Split, MomentDataset], measured_steps: int) -> Plan:
    settings, train, val = experiment.train, splits["train"], splits["val"]
    device = this_world().device
    dtype = resolve_precision(settings.precision, device)
    batches = global_batches(train, experiment, 1, this_world())
    memory, available = estimate(experiment, dtype, device, batches), available_bytes(device)
    base = peak_bytes(device)
    use_tf32(settings.tf32)
    model = build_model(experiment).to(device)
    at_once = queries_at_once(settings, batches, this_world())
    if (kernels := choose_products(settings, model.mixed_shapes, at_once, dtype, this_world())) is not None:
        model.use_products(kernels.of(model.mixed_shapes))
    trial = _Trial(
        experiment, model, build_optimiser(model, experiment.optim, model.text_part), train, batches, device, dtype
    )
    samples = max(map(len, batches))
    wanted = settings.micro_batch
    micro_batch = (
        fit_micro_batch(samples, memory, available, trial.attempt, experiment.batch_of)
        if wanted == "auto"
        else min(wanted, samples)
    )
    seconds = trial.time_steps(measured_steps, micro_batch)
    evaluated = min(settings.eval_queries or len(val), len(val))
    val_seconds = trial.time_evaluation(val, min(micro_batch * memory.each, evaluated)) * evaluated
    evaluations = len({*range(1, settings.epochs + 1, settings.eval_every), settings.epochs})
    total_steps = len(batches) * settings.epochs
    total = total_steps * median(seconds) + evaluations * val_seconds
    names: tuple[Split, Split] = ("train", "val")
    return Plan(
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        memory=memory,
        available_bytes=available,
        base_bytes=base,
        peak_bytes=peak_bytes(device),
        batch=max(sum(map(len, batch)) for batch in batches),
        samples=samples,
        micro_batch=micro_batch,
        queries={name: len(splits[name]) for name in names},
        videos={name: len({item.video for item in splits[name].annotations}) for name in names},
        epoch_queries=sum(len(sample) for samples in batches for sample in samples),
        steps_per_epoch=len(batches),
        total_steps=total_steps,
        measured_steps=len(seconds),
        seconds_per_step=median(seconds),
        val_seconds=val_seconds,
        seconds_per_epoch=total / settings.epochs,
        seconds=total,
        checkpoint_bytes=checkpoint_bytes(experiment),
    )


@dataclass
class _Trial:
    """A trial that is measured."""

    experiment: Experiment
    model: MomentModel
    optimiser: Optimizer
    dataset: MomentDataset
    batches: Sequence[Samples]  # of an epoch
    device: torch.device
    dtype: torch.dtype

    def attempt(self, samples: int) -> None:
        """Computes a gradient on a GPU; a CPU reports no lack of memory before it is too late."""
        if self.device.type != "cuda":
            return
        try:
            self._backward(self.dataset.batch(largest(self.batches, samples)), 1.0)
        finally:
            self.optimiser.zero_grad(set_to_none=True)

    def time_steps(self, count: int, micro_batch: int) -> list[float]:
        """Returns the seconds of each of some steps on full batches, after one that is not counted."""
        full = [batch for batch in self.batches if len(batch) == len(self.batches[0])]
        ends = []
        self.model.train()
        chosen = list(islice(cycle(full), count + 1))
        with closing(prefetch(self.dataset, map(np.concatenate, chosen), self.device.type == "cuda")) as loader:
            for samples, batch in zip(chosen, loader, strict=True):
                self._step(batch, samples, micro_batch)
                ends.append(time.perf_counter())
        return [end - start for start, end in pairwise(ends)]

    def time_evaluation(self, val: MomentDataset, queries: int) -> float:
        """Returns the seconds that the evaluation of one query takes, measured on so many."""
        start = time.perf_counter()
        evaluate_split(self.model, val, self.experiment.eval, dtype=self.dtype, queries=queries)
        return (time.perf_counter() - start) / queries

    def _step(self, batch: Batch, samples: Samples, micro_batch: int) -> None:
        """Makes one optimiser step, in pieces of at most so many samples."""
        self.optimiser.zero_grad(set_to_none=True)
        self.model.start_step(len(batch))
        for piece in pieces(batch, samples, -(-len(samples) // micro_batch)):
            self._backward(piece, len(piece) / len(batch))
        self.model.end_step(lambda mine: mine)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.experiment.optim.clip_norm)
        self.optimiser.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _backward(self, batch: Batch, weight: float) -> None:
        """Adds the gradient of some queries' loss, weighted."""
        loss = batch_loss(self.model, batch.to(self.device), self.dtype)[0]
        torch.autograd.backward(loss * weight)
