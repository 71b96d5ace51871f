"""How much memory a trial needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from cdn_tune.config import Experiment
from cdn_tune.model.family import MomentModel
from cdn_tune.training.memory.size import model_without_memory
from cdn_tune.training.runs.checkpoint import build_model

_WAITING = 3  # batches assembled ahead of the step (data/batches.py)
_WORDS = 30  # of a query, at most as a rule
# What autocast computes in short numbers.
_LOWERED = frozenset(["linear", "conv1d", "conv2d", "bmm", "matmul", "__matmul__"])


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training a trial needs on one worker.

    Attributes:
        weights: The model's parameters and buffers.
        gradients: Their gradients.
        optimiser: Adam's two moments.
        activations: What the backward pass keeps, per query.
        temporary: What comes and goes in the dearest layer, per query, and on a CPU the batches that wait.
        ema: The running mean of the weights; 0 without.
        copies: Weights in another order or number format that the backward pass keeps, and a layer's gradient before
            it is added to the others; on a CPU also the copy that a checkpoint is written from, elsewhere
            kernels mixed for a few queries at once.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int
    temporary: int = 0
    ema: int = 0
    copies: int = 0

    def total(self, queries: int) -> int:
        """Returns the bytes needed to compute so many queries at once."""
        fixed = self.weights + self.gradients + self.optimiser + self.ema + self.copies
        return fixed + queries * (self.activations + self.temporary)


def estimate(experiment: Experiment, dtype: torch.dtype, device: torch.device | None = None) -> MemoryEstimate:
    """Estimates the memory of a trial: nothing is allocated or computed, if its family knows what it takes for a while.

    Of another family a forward pass of a few random queries is measured, on the CPU; what comes and goes is counted as
    much as what is kept.

    Args:
        experiment: The trial.
        dtype: Format of the forward pass.
        device: Where it computes; a GPU if there is one by default.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model_without_memory(experiment).train()
    parameters = _bytes(model.parameters())
    weights = parameters + _bytes(model.buffers())
    # A checkpoint is written from a copy in main memory.
    snapshot = weights + 2 * parameters + (weights if experiment.train.ema else 0) if device.type == "cpu" else 0
    known = model.memory(experiment.data.frames, experiment.train.batch_size, dtype, device)
    run = model if known is not None else build_model(experiment).train()
    two, three = (_kept(run, experiment, dtype, queries) for queries in (2, 3))
    waiting = _WAITING * experiment.data.frames * experiment.data.feature_size * 4 if device.type == "cpu" else 0
    return MemoryEstimate(
        weights=weights,
        gradients=parameters,
        optimiser=2 * parameters,
        activations=three - two,
        temporary=(known.temporary if known is not None else three - two) + waiting,
        ema=weights if experiment.train.ema else 0,
        # A CPU convolves in tiles wherever weights are large, without copies of them.
        copies=max(parameter.nbytes for parameter in model.parameters())
        + snapshot
        + (known.at_once if known is not None else 0)
        + (0 if device.type == "cpu" else max(two - 2 * (three - two), 0)),
    )


class _Watch(TorchFunctionMode):
    """Computes in the number formats of autocast, which passes tensors without memory by, and watches convolutions.

    A convolution with mixed kernels keeps its input but not its kernels (model/cell_conv.py), and hides both from
    hooks outside.

    Args:
        dtype: Format of the forward pass.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.inputs: list[Tensor] = []
        self.kernels: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls a function of torch."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _LOWERED and self.dtype != torch.float32:
            args = tuple(map(self._lower, args))
        if name == "conv2d" and kwargs.get("groups", 1) > 1:
            self.inputs.append(args[0])
            self.kernels.append(args[1])
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _kept(model: MomentModel, experiment: Experiment, dtype: torch.dtype, queries: int) -> int:
    """Returns the bytes, besides the model, that a forward pass keeps for the backward pass.

    Args:
        model: In train mode, with or without memory.
        experiment: Its experiment.
        dtype: Format of the forward pass.
        queries: How many at once; two or more, or kernels mixed per query cannot be told from others.
    """
    data = experiment.data
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[]):
        batch = SimpleNamespace(
            visual=torch.rand(queries, data.frames, data.feature_size, device=device),
            words=torch.rand(queries, _WORDS, data.word_size, device=device),
            word_mask=torch.ones(queries, _WORDS, dtype=torch.bool, device=device),
        )
        with saved_tensors_hooks(pack, lambda tensor: tensor), _Watch(dtype) as watch:
            model(*model.inputs_of(batch))
    others = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers(), *watch.kernels)}
    sizes = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in (*saved, *watch.inputs)}
    return sum(size for storage, size in sizes.items() if storage not in others)


def _storage(tensor: Tensor) -> StorageWeakRef:
    """Returns what tells a tensor's memory from another's, also on the meta device, where it has no address."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
