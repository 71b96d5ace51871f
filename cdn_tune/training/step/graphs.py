"""Optimiser steps as CUDA graphs: recorded once for each shape of a batch, then replayed with one launch."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Protocol

import torch
from torch.optim import Optimizer
from torch.torch_version import TorchVersion

from cdn_tune.config import Experiment
from cdn_tune.data.dataset import Batch
from cdn_tune.data.files import brief
from cdn_tune.model.family import MomentModel
from cdn_tune.training.step.process_group import World

WORDS = 8  # queries are padded to a multiple of so many words: a graph for each, not one for every length
_TORCH = "2.12"  # from this version on a recording that fails leaves the allocator of memory in order
_LOG = logging.getLogger(__name__)

Update = Callable[[Batch], torch.Tensor]


class Capture(Protocol):
    """Records what a function launches on a device."""

    def __call__(self, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Calls a function without carrying out what it launches.

        Returns:
            A function that carries that out, on the same memory, and returns the tensor that `function` returned; the
            next call of any recorded function may overwrite it.
        """


def are_static(
    experiment: Experiment, model: MomentModel, world: World, dtype: torch.dtype, micro_batch: int | None
) -> bool:
    """Returns whether the steps of a training are recorded: if they are to be (`train.cuda_graphs`) and can be.

    They can with a newer torch on one GPU, without a compiler or a scaled loss, if batches have so many queries, which
    are computed at once, and the family's step depends on nothing but their shapes.
    """
    alone = world.device.type == "cuda" and world.size == 1 and TorchVersion(torch.__version__) >= _TORCH
    plain = experiment.train.cuda_graphs and dtype != torch.float16 and not experiment.train.compile
    return alone and plain and micro_batch is None and experiment.batch_of == "queries" and model.static_step


class StepGraphs:
    """Makes optimiser steps, replayed where a batch has the shapes of earlier ones.

    The first batch of its shapes is computed as without graphs, which compiles kernels and creates the optimiser's
    state; the second is recorded, and from there on replayed. If a recording fails, no more steps are recorded or
    replayed, with one warning. Weights, optimiser state and random numbers are the same in all cases.

    Args:
        optimiser: A fused one, whose state is loaded before the first step. Its learning rates are numbers, which a
            graph would keep: within a step they are tensors of the same values in float32.
        capture: Records a step.
    """

    def __init__(self, optimiser: Optimizer, capture: Capture) -> None:
        self._optimiser, self._capture = optimiser, capture
        device = next(weight.device for group in optimiser.param_groups for weight in group["params"])
        self._rates = [torch.zeros((), device=device) for _ in optimiser.param_groups]
        self._inputs: dict[tuple[str, torch.Size], torch.Tensor] = {}  # memory that graphs read a batch from
        self._graphs: dict[tuple[torch.Size, ...], Callable[[], torch.Tensor] | None] = {}  # None: seen once
        self._failed = False

    def step(self, batch: Batch, update: Update, *, record: bool) -> torch.Tensor:
        """Makes one step and returns what `update` does.

        Args:
            batch: A batch on the device.
            update: Makes the step of a batch of these shapes, and returns its results on the device. What it does
                there depends on the shapes alone, and on the learning rates.
            record: Whether it may be recorded or replayed.
        """
        for rate, group in zip(self._rates, self._optimiser.param_groups, strict=True):
            rate.fill_(group["lr"])
        with self._rates_as_tensors():
            replay = self._graph_of(batch, update) if record and not self._failed else None
            return update(batch) if replay is None else replay().clone()

    def _graph_of(self, batch: Batch, update: Update) -> Callable[[], torch.Tensor] | None:
        """Returns the graph of a batch's shapes, which reads this batch; None if there is none."""
        shapes = tuple(getattr(batch, field.name).shape for field in fields(batch))
        if shapes not in self._graphs:
            self._graphs[shapes] = None
            return None
        inputs = self._placed(batch)
        if self._graphs[shapes] is None:
            self._optimiser.zero_grad(set_to_none=True)  # their memory is the graph's to come
            try:
                self._graphs[shapes] = self._capture(partial(update, inputs))
            except Exception as error:  # of the driver, an operation that waits for the device, a lack of memory
                _LOG.warning(
                    "steps are not replayed as CUDA graphs: %s: %s; train.cuda_graphs=false leaves out the attempt",
                    type(error).__name__,
                    brief(error),
                )
                self._failed = True
                self._graphs.clear()
                self._inputs.clear()
                return None
        return self._graphs[shapes]

    def _placed(self, batch: Batch) -> Batch:
        """Copies a batch to where graphs read it."""
        placed = {}
        for field in fields(batch):
            value: torch.Tensor = getattr(batch, field.name)
            place = field.name, value.shape
            if place not in self._inputs:
                self._inputs[place] = torch.empty_like(value)
            placed[field.name] = self._inputs[place].copy_(value)
        return replace(batch, **placed)

    @contextmanager
    def _rates_as_tensors(self) -> Iterator[None]:
        """Has the optimiser read its learning rates from the device; outside, and in checkpoints, they are numbers."""
        groups = self._optimiser.param_groups
        held = [{key: group[key] for key in ("lr", "capturable")} for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group |= {"lr": rate, "capturable": True}
        try:
            yield
        finally:
            for group, values in zip(groups, held, strict=True):
                group |= values


class CudaCapture:
    """Records on a GPU. All recordings share their memory, since one is replayed at a time.

    Beside this memory, which is theirs for good, other steps need as much again: a recording fails if that is not free.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()
        self._taken = 0  # bytes

    def __call__(self, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Records a function; see `Capture`.

        Raises:
            RuntimeError: If it cannot be recorded, or memory does not suffice.
        """
        graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self._device)
        generator = torch.cuda.default_generators[self._device.index]
        kept = generator.clone_state()
        try:
            # Other threads assemble and pin batches meanwhile. A failure would leave the recording's stream current.
            with (
                torch.cuda.stream(torch.cuda.current_stream(self._device)),
                torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
            ):
                results = function()
        except BaseException:
            generator.graphsafe_set_state(kept)  # else it would still be recording
            raise
        free, _ = torch.cuda.mem_get_info(self._device)
        self._taken += torch.cuda.memory_reserved(self._device) - before
        if free < self._taken:
            raise torch.OutOfMemoryError(f"graphs take {self._taken >> 20} MiB, and {free >> 20} MiB are left")

        def replay() -> torch.Tensor:
            graph.replay()
            return results

        return replay
