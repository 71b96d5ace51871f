"""One epoch of optimisation: batches in, gradients clipped, weights moved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from cdn_tune.config import Experiment
from cdn_tune.data.batches import Indices, epoch_batches, prefetch, shard
from cdn_tune.data.dataset import Batch, MomentDataset
from cdn_tune.errors import NotFinite
from cdn_tune.model.nonfinite import explain_nonfinite
from cdn_tune.training.memory.out_of_memory import shortage_told
from cdn_tune.training.reports import OnStep, StepReport
from cdn_tune.training.step.batch_loss import batch_loss, unwrapped
from cdn_tune.training.step.ema import Ema
from cdn_tune.training.step.optimiser import Schedule
from cdn_tune.training.step.process_group import World


@dataclass(frozen=True)
class EpochTotals:
    """Means over an epoch's queries (gradient norm: over its steps), and its duration.

    `losses` are the parts of the loss by name.
    """

    loss: float
    losses: dict[str, float]
    gradient_norm: float
    queries: int
    seconds: float


@dataclass
class EpochState:
    """How far an epoch is; a checkpoint within the epoch keeps it.

    Attributes:
        step: Steps done.
        sums: Loss and its parts (sums over this worker's queries) and queries, float64 [2 + parts]; None before the
            first step.
        norms: Sum of gradient norms.
        seconds: Time spent.
    """

    step: int = 0
    sums: torch.Tensor | None = None
    norms: float = 0.0
    seconds: float = 0.0


@dataclass
class Engine:
    """What moves the weights of one trial, on one of its workers.

    Attributes:
        experiment: The trial.
        model: The model, possibly wrapped for several workers.
        optimiser: Its optimiser.
        schedule: Its learning rate.
        world: The trial's workers.
        dtype: Format of the forward pass.
        scaler: Scales the loss where the format needs it.
        micro_batch: Queries that this worker computes at once at most; None for its whole share of a batch.
        ema: Running mean of the weights, if wanted.
        between_steps: Called with the epoch's number and state after every step, all files in order; may raise.
    """

    experiment: Experiment
    model: nn.Module
    optimiser: Optimizer
    schedule: Schedule
    world: World
    dtype: torch.dtype
    scaler: torch.amp.GradScaler
    micro_batch: int | None = None
    ema: Ema | None = None
    between_steps: Callable[[int, EpochState], None] | None = None

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
        batches = global_batches(len(dataset), self.experiment, epoch, self.world)
        left = batches[state.step :]
        mine = [shard(batch, self.world.rank, self.world.size) for batch in left]
        self.model.train()
        with closing(prefetch(dataset, mine, pin=self.world.device.type == "cuda")) as loader:
            for whole, batch in zip(left, loader, strict=True):
                with shortage_told(f"at epoch {epoch}, step {state.step + 1}"):
                    parts, norm = self.step(batch, len(whole))
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

    def step(self, batch: Batch, size: int) -> tuple[torch.Tensor, float]:
        """Makes one optimiser step.

        Args:
            batch: This worker's share of the global batch.
            size: Queries in the global batch.

        Returns:
            Loss and its parts of the share [1 + parts] in float64 on the CPU, and the norm of the gradient before
            clipping.
        """
        self.optimiser.zero_grad(set_to_none=True)
        device = self.world.device
        sums = torch.zeros(1 + len(unwrapped(self.model).loss_names), dtype=torch.float64, device=device)
        pieces = self._pieces(batch, size)
        for number, piece in enumerate(pieces, start=1):
            with self._keep_to_myself(number < len(pieces)):
                parts = batch_loss(self.model, piece.to(device), self.dtype)
                # Workers' gradients are averaged: each query then counts 1 / size, whatever its worker and piece.
                weight = len(piece.indices) * self.world.size / size
                torch.autograd.backward(self.scaler.scale(parts[0] * weight))
            sums += parts.detach() * (len(piece.indices) / len(batch.indices))
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self._parameters, self.experiment.optim.clip_norm)
        if self.scaler.is_enabled() or bool(norm.isfinite()):
            self.scaler.step(self.optimiser)  # leaves out a step whose scaled gradient overflowed
            self.scaler.update()
            self.schedule.step()
            if self.ema is not None:
                self.ema.update(unwrapped(self.model))
        return sums.cpu(), float(norm)

    def _pieces(self, batch: Batch, size: int) -> list[Batch]:
        """Cuts a share into micro-batches: as many on every worker, because workers normalise each together."""
        if self.micro_batch is None:
            return [batch]
        largest, smallest = -(-size // self.world.size), size // self.world.size  # shares
        count = min(-(-largest // self.micro_batch), smallest)
        if count == 1:
            return [batch]
        parts = np.array_split(np.arange(len(batch.indices)), count)
        cut = [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
        return [Batch(**{name.name: getattr(batch, name.name)[part] for name in fields(Batch)}) for part in cut]

    def _keep_to_myself(self, more: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over workers with the last micro-batch alone."""
        no_sync = getattr(self.model, "no_sync", None)
        context: AbstractContextManager[None] = no_sync() if more and no_sync is not None else nullcontext()
        return context

    def _is_fine(self, parts: torch.Tensor, norm: float) -> bool:
        return bool(parts.isfinite().all()) and (math.isfinite(norm) or self.scaler.is_enabled())

    def _not_finite(
        self, dataset: MomentDataset, batch: Batch, epoch: int, step: int, parts: torch.Tensor, norm: float
    ) -> str:
        ids = [dataset.annotations[index].id for index in batch.indices.tolist()]
        videos = [dataset.annotations[index].video for index in batch.indices.tolist()]
        names = [f"{video} ({annotation})" for video, annotation in zip(videos, ids, strict=True)]
        cause = explain_nonfinite(unwrapped(self.model), batch.visual, batch.words, names)
        shown = ", ".join(ids[:8]) + (f", ... ({len(ids)} in all)" if len(ids) > 8 else "")
        what = f"loss {float(parts[0])}" if not math.isfinite(float(parts[0])) else f"gradient norm {norm}"
        return (
            f"{what} at epoch {epoch}, step {step}, learning rate {self.schedule.learning_rate:.3g}; "
            f"batch {shown}; {f'{cause}; ' if cause else ''}lower optim.lr, or look at these features"
        )


def global_batches(size: int, experiment: Experiment, epoch: int, world: World) -> list[Indices]:
    """Returns the epoch's batches over all workers; order depends on seed and epoch only.

    A last batch with fewer queries than workers is left out, since every worker takes part in every step.
    """
    batches = epoch_batches(size, experiment.train.batch_size, experiment.seed, epoch)
    return [batch for batch in batches if len(batch) >= world.size]
