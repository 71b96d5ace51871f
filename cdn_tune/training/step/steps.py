"""One epoch of optimisation: batches in, gradients clipped, weights moved."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from cdn_tune.config import Experiment
from cdn_tune.data.augment import Augmented
from cdn_tune.data.batches import Samples, pieces, prefetch, shard, training_batches
from cdn_tune.data.dataset import Batch, MomentDataset
from cdn_tune.errors import NotFinite
from cdn_tune.model.nonfinite import explain_nonfinite
from cdn_tune.training.memory.device import memory_errors
from cdn_tune.training.reports import OnStep, StepReport
from cdn_tune.training.step.batch_loss import batch_loss, unwrapped
from cdn_tune.training.step.optimiser import Ema, Schedule
from cdn_tune.training.step.process_group import World


@dataclass(frozen=True)
class EpochTotals:
    """Means over an epoch's queries (gradient norm: over its steps), and its duration."""

    loss: float
    losses: dict[str, float]  # parts of the loss by name
    gradient_norm: float
    queries: int
    seconds: float


@dataclass
class EpochState:
    """How far an epoch is; a checkpoint within the epoch keeps it."""

    step: int = 0  # steps done
    sums: torch.Tensor | None = None  # over this worker's queries: loss, its parts, queries; float64 [2 + parts]
    norms: float = 0.0  # sum of gradient norms
    seconds: float = 0.0  # time spent


@dataclass
class Engine:
    """Makes the optimiser steps of one trial, on one of its workers."""

    experiment: Experiment
    model: nn.Module  # the model, possibly wrapped for several workers
    optimiser: Optimizer
    schedule: Schedule
    world: World  # the trial's workers
    dtype: torch.dtype  # format of the forward pass
    scaler: torch.amp.GradScaler  # scales the loss where the format needs it
    micro_batch: int | None = None  # most samples computed at once; None for this worker's whole share of a batch
    ema: Ema | None = None  # running mean of the weights, if wanted
    between_steps: Callable[[int, EpochState], None] | None = None  # called with the epoch after every step; may raise

    def run_epoch(
        self, dataset: MomentDataset, epoch: int, on_step: OnStep, state: EpochState | None = None
    ) -> EpochTotals:
        """Trains one epoch, or the rest of it.

        Args:
            dataset: The train split.
            epoch: Number of the epoch, from 1; with the seed it determines the order.
            on_step: Called after every optimiser step.
            state: Where the epoch was left; its start if None.

        Raises:
            NotFinite: If the loss or the gradient is not finite.
            MemoryShortage: If memory does not suffice for a step.
        """
        state = state or EpochState()
        if state.sums is None:
            state.sums = torch.zeros(2 + len(unwrapped(self.model).loss_names), dtype=torch.float64)
        sums = state.sums
        start = time.perf_counter() - state.seconds
        batches = global_batches(dataset, self.experiment, epoch, self.world)
        left = batches[state.step :]
        mine = [np.concatenate(self._share(batch)) for batch in left]
        augment = self.experiment.train.augment
        source = Augmented(dataset, augment, self.experiment.seed, epoch) if augment.active else dataset
        self.model.train()
        unwrapped(self.model).start_epoch(epoch)
        with closing(prefetch(source, mine, pin=self.world.device.type == "cuda")) as loader:
            for whole, batch in zip(left, loader, strict=True):
                with memory_errors(f"at epoch {epoch}, step {state.step + 1}"):
                    parts, norm = self.step(batch, whole)
                state.step += 1
                if not self._is_fine(parts, norm):
                    raise NotFinite(self._not_finite(dataset, batch, epoch, state.step, parts, norm))
                sums += torch.cat([parts * len(batch.indices), torch.tensor([len(batch.indices)])])
                state.norms += norm if math.isfinite(norm) else 0.0
                state.seconds = time.perf_counter() - start
                rate = float(sums[-1]) * self.world.size / state.seconds
                on_step(StepReport(epoch, state.step, len(batches), float(parts[0]), rate))
                if self.between_steps is not None:
                    self.between_steps(epoch, state)
        sums = self.world.sum(sums.to(self.world.device)).cpu()
        loss, *parts_of_it = (sums[:-1] / sums[-1]).tolist()
        losses = dict(zip(unwrapped(self.model).loss_names, parts_of_it, strict=True))
        self.schedule.end_epoch(loss)
        seconds = time.perf_counter() - start
        return EpochTotals(loss, losses, state.norms / len(batches), int(sums[-1]), seconds)

    @cached_property
    def _parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def step(self, batch: Batch, whole: Samples) -> tuple[torch.Tensor, float]:
        """Makes one optimiser step.

        Args:
            batch: This worker's share of the global batch.
            whole: The global batch.

        Returns:
            The share's loss and its parts, float64 [1 + parts] on the CPU, and the gradient's norm before clipping.
        """
        self.optimiser.zero_grad(set_to_none=True)
        device = self.world.device
        sums = torch.zeros(1 + len(unwrapped(self.model).loss_names), dtype=torch.float64, device=device)
        size = sum(map(len, whole))  # queries
        parts_of_it = self._pieces(batch, whole)
        family = unwrapped(self.model)
        family.start_step(size)
        for number, piece in enumerate(parts_of_it, start=1):
            with self._without_averaging(number < len(parts_of_it)):
                parts = batch_loss(self.model, piece.to(device), self.dtype)
                # Workers' gradients are averaged: each query then counts 1 / size, whatever its worker and piece.
                weight = len(piece.indices) * self.world.size / size
                torch.autograd.backward(self.scaler.scale(parts[0] * weight))
            sums += parts.detach() * (len(piece.indices) / len(batch.indices))
        family.end_step(self.world.sum)
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self._parameters, self.experiment.optim.clip_norm)
        if self.scaler.is_enabled() or bool(norm.isfinite()):
            self.scaler.step(self.optimiser)  # leaves out a step whose scaled gradient overflowed
            self.scaler.update()
            self.schedule.step()
            if self.ema is not None:
                self.ema.update(family)
        return sums.cpu(), float(norm)

    def _share(self, whole: Samples) -> Samples:
        """Returns this worker's share of a global batch."""
        return shard(whole, self.world.rank, self.world.size)

    def _pieces(self, batch: Batch, whole: Samples) -> list[Batch]:
        """Cuts a share into micro-batches: as many on every worker, because workers normalise each together."""
        if self.micro_batch is None:
            return [batch]
        largest, smallest = -(-len(whole) // self.world.size), len(whole) // self.world.size  # shares
        count = min(-(-largest // self.micro_batch), smallest)
        return [batch] if count == 1 else pieces(batch, self._share(whole), count)

    def _without_averaging(self, more: bool) -> AbstractContextManager[None]:
        """Returns the context of a micro-batch: gradients are averaged over workers with the last one alone."""
        no_sync = getattr(self.model, "no_sync", None)
        context: AbstractContextManager[None] = no_sync() if more and no_sync is not None else nullcontext()
        return context

    def _is_fine(self, parts: torch.Tensor, norm: float) -> bool:
        return bool(parts.isfinite().all()) and (math.isfinite(norm) or self.scaler.is_enabled())

    def _not_finite(
        self, dataset: MomentDataset, batch: Batch, epoch: int, step: int, parts: torch.Tensor, norm: float
    ) -> str:
        items = [dataset.annotations[index] for index in batch.indices.tolist()]
        ids, names = [item.id for item in items], [f"{item.video} ({item.id})" for item in items]
        cause = explain_nonfinite(unwrapped(self.model), batch.frames, batch.words, names)
        shown = ", ".join(ids[:8]) + (f", ... ({len(ids)} in all)" if len(ids) > 8 else "")
        what = f"loss {float(parts[0])}" if not math.isfinite(float(parts[0])) else f"gradient norm {norm}"
        return (
            f"{what} at epoch {epoch}, step {step}, learning rate {self.schedule.learning_rate:.3g}; "
            f"batch {shown}; {f'{cause}; ' if cause else ''}lower optim.lr, or look at these features"
        )


def global_batches(dataset: MomentDataset, experiment: Experiment, epoch: int, world: World) -> list[Samples]:
    """Returns the epoch's batches over all workers; order, and parts of videos, depend on seed and epoch only.

    A last batch with fewer samples than workers is left out, since every worker takes part in every step.
    """
    of_videos = experiment.batch_of == "videos"
    batches = training_batches(dataset, experiment.train.batch_size, experiment.seed, epoch, of_videos)
    return [batch for batch in batches if len(batch) >= world.size]
