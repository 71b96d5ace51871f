"""One epoch of optimisation: batches in, gradients clipped, weights moved."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from cdn_tune.config import Experiment, TrainConfig
from cdn_tune.data.augment import Augmented
from cdn_tune.data.batches import PaddedWords, Samples, Source, copied_ahead, pieces, prefetch, shard, training_batches
from cdn_tune.data.dataset import Batch, MomentDataset
from cdn_tune.errors import NotFinite
from cdn_tune.model.nonfinite import explain_nonfinite
from cdn_tune.training.memory.device import memory_errors
from cdn_tune.training.reports import OnStep, StepReport
from cdn_tune.training.step.batch_loss import batch_loss, unwrapped
from cdn_tune.training.step.graphs import WORDS, StepGraphs
from cdn_tune.training.step.optimiser import Ema, Schedule, leave_out_if
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


@dataclass(frozen=True)
class _Epoch:
    """An epoch under way."""

    dataset: MomentDataset
    number: int
    steps: int  # in all
    state: EpochState
    sums: torch.Tensor  # the state's
    start: float  # when it would have begun, had it not been interrupted
    on_step: OnStep


@dataclass(frozen=True)
class _Issued:
    """A step whose results are on their way to the host."""

    epoch: _Epoch
    number: int  # within the epoch, from 1
    batch: Batch  # this worker's share, on the host
    results: torch.Tensor  # as `Engine.step` returns them, on the host once they have arrived
    arrived: torch.cuda.Event | None  # None: they have


@dataclass
class Engine:
    """Makes the optimiser steps of one trial, on one of its workers.

    Nothing in a step waits for a GPU: with `lags`, the results of a step are read while the next one is under way. A
    gradient that is not finite changes no weight, and is then told one step late.
    """

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
    lags: bool = False  # read a step's results once the next one has been issued; for a GPU
    graphs: StepGraphs | None = None  # replays the steps of whole batches, if these are static
    _issued: _Issued | None = field(default=None, init=False)

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
        sums, start = state.sums, time.perf_counter() - state.seconds
        batches = global_batches(dataset, self.experiment, epoch, self.world)
        left = batches[state.step :]
        mine = [np.concatenate(self._share(batch)) for batch in left]
        augment = self.experiment.train.augment
        source: Source = Augmented(dataset, augment, self.experiment.seed, epoch) if augment.active else dataset
        if self.graphs is not None:
            source = PaddedWords(source, WORDS)
        self.model.train()
        unwrapped(self.model).start_epoch(epoch)
        under_way = _Epoch(dataset, epoch, len(batches), state, sums, start, on_step)
        with closing(prefetch(source, mine, pin=self.world.device.type == "cuda")) as loader:
            copies = self._copied(loader)
            for whole in left:
                batch, copy = next(copies)
                with memory_errors(f"at epoch {epoch}, step {state.step + 1}"):
                    results = self.step(copy, whole)
                del copy
                self.settle()
                state.step += 1
                self._issued = _Issued(under_way, state.step, batch, *_to_host(results))
                if not self.lags:
                    self.settle()
                if self.between_steps is not None:
                    self.between_steps(epoch, state)
        self.settle()
        sums = self.world.sum(sums.to(self.world.device)).cpu()
        loss, *parts_of_it = (sums[:-1] / sums[-1]).tolist()
        losses = dict(zip(unwrapped(self.model).loss_names, parts_of_it, strict=True))
        self.schedule.end_epoch(loss)
        seconds = time.perf_counter() - start
        return EpochTotals(loss, losses, state.norms / len(batches), int(sums[-1]), seconds)

    @cached_property
    def _parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @cached_property
    def _aside(self) -> torch.cuda.Stream:
        """Where batches are copied."""
        return torch.cuda.Stream(self.world.device)  # type: ignore[no-untyped-call]

    def settle(self) -> None:
        """Waits for the results of the last step, and adds them to its epoch's; `between_steps` calls it to save.

        Raises:
            NotFinite: If its loss or its gradient is not finite.
        """
        if self._issued is None:
            return
        issued, self._issued = self._issued, None
        if issued.arrived is not None:
            issued.arrived.synchronize()
        *parts, norm = issued.results.tolist()
        epoch, state, queries = issued.epoch, issued.epoch.state, len(issued.batch.indices)
        if not (all(map(math.isfinite, parts)) and (math.isfinite(norm) or self.scaler.is_enabled())):
            raise NotFinite(self._not_finite(issued, parts[0], norm))
        epoch.sums.add_(torch.cat([issued.results[:-1] * queries, torch.tensor([queries])]))
        state.norms += norm if math.isfinite(norm) else 0.0
        state.seconds = time.perf_counter() - epoch.start
        rate = float(epoch.sums[-1]) * self.world.size / state.seconds
        epoch.on_step(StepReport(epoch.number, issued.number, epoch.steps, parts[0], rate))

    def step(self, batch: Batch, whole: Samples) -> torch.Tensor:
        """Makes one optimiser step; it leaves the weights as they are if the gradient is not finite.

        Args:
            batch: This worker's share of the global batch, anywhere.
            whole: The global batch.

        Returns:
            The share's loss, its parts and the gradient's norm before clipping, float64 [2 + parts] on the device.
        """
        size = sum(map(len, whole))  # queries
        if self.graphs is None:
            results = self._update(self._pieces(batch, whole), size)
        else:
            is_full = len(whole) == self.experiment.train.batch_size
            given = batch.to(self.world.device)
            results = self.graphs.step(given, lambda one: self._update([one], size), record=is_full)
        self.schedule.step()
        if self.ema is not None:
            self.ema.update(unwrapped(self.model))
        return results

    def _update(self, parts_of_it: Sequence[Batch], size: int) -> torch.Tensor:
        """Moves the weights by a share in parts, of a batch of so many queries; returns what `step` does.

        What it does on the device depends on shapes, on the learning rate and on random numbers alone.
        """
        self.optimiser.zero_grad(set_to_none=True)
        device, family, queries = self.world.device, unwrapped(self.model), sum(map(len, parts_of_it))
        sums = torch.zeros(1 + len(family.loss_names), dtype=torch.float64, device=device)
        family.start_step(size)
        for number, piece in enumerate(parts_of_it, start=1):
            with self._without_averaging(number < len(parts_of_it)):
                parts = batch_loss(self.model, piece.to(device), self.dtype)
                # Workers' gradients are averaged: each query then counts 1 / size, whatever its worker and piece.
                weight = len(piece) * self.world.size / size
                torch.autograd.backward(self.scaler.scale(parts[0] * weight))
            sums += parts.detach() * (len(piece) / queries)
        family.end_step(self.world.sum)
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self._parameters, self.experiment.optim.clip_norm)
        if not self.scaler.is_enabled():  # which leaves out a step whose scaled gradient overflowed itself
            leave_out_if(self.optimiser, ~norm.isfinite())
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return torch.cat([sums, norm.to(sums).reshape(1)])

    def _copied(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Batch]]:
        """Yields batches with what a step takes: a copy on the GPU, unless it is computed in parts."""
        if self.world.device.type == "cuda" and self.micro_batch is None:
            return copied_ahead(batches, self.world.device, self._aside)
        return ((batch, batch) for batch in batches)

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

    def _not_finite(self, issued: _Issued, loss: float, norm: float) -> str:
        dataset, batch = issued.epoch.dataset, issued.batch
        items = [dataset.annotations[index] for index in batch.indices.tolist()]
        ids, names = [item.id for item in items], [f"{item.video} ({item.id})" for item in items]
        cause = explain_nonfinite(unwrapped(self.model), batch.frames, batch.words, names)
        shown = ", ".join(ids[:8]) + (f", ... ({len(ids)} in all)" if len(ids) > 8 else "")
        what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {norm}"
        where = f"epoch {issued.epoch.number}, step {issued.number}"
        return (
            f"{what} at {where}, learning rate {self.schedule.learning_rate:.3g}; "
            f"batch {shown}; {f'{cause}; ' if cause else ''}lower optim.lr, or look at these features"
        )


def _to_host(results: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Starts to copy results to the host; returns the copy, and what tells when it is there."""
    if not results.is_cuda:
        return results, None
    copy = torch.empty_like(results, device="cpu", pin_memory=True).copy_(results, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return copy, arrived


def queries_at_once(settings: TrainConfig, batches: Sequence[Samples], world: World) -> int:
    """Returns how many queries a worker computes at once, at most; of its whole share if `micro_batch` is auto."""
    queries, samples = max(sum(map(len, batch)) for batch in batches), max(map(len, batches))
    share = -(-samples // world.size)
    held = share if settings.micro_batch == "auto" else min(share, settings.micro_batch)
    return -(-queries * held // samples)


def global_batches(dataset: MomentDataset, experiment: Experiment, epoch: int, world: World) -> list[Samples]:
    """Returns the epoch's batches over all workers; order, and parts of videos, depend on seed and epoch only.

    A last batch with fewer samples than workers is left out, since every worker takes part in every step.
    """
    of_videos = experiment.batch_of == "videos"
    batches = training_batches(dataset, experiment.train.batch_size, experiment.seed, epoch, of_videos)
    return [batch for batch in batches if len(batch) >= world.size]
