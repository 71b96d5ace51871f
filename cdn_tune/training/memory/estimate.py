"""How much memory a trial needs.

Letters: C channels (the hidden size), S clips, K kernel size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from cdn_tune.config import Experiment
from cdn_tune.model.cdn import CDN
from cdn_tune.model.kernels.sample_conv import samples_at_once
from cdn_tune.training.memory.size import model_without_memory

_WAITING = 3  # batches assembled ahead of the step (data/batches.py)
_WORDS = 30  # of a query, at most as a rule
# What autocast computes in short numbers.
_LOWERED = frozenset(["linear", "conv1d", "conv2d", "bmm", "matmul", "__matmul__"])
_TILED = 1024  # from this product of channels and kernel size on a CPU convolves in tiles (model/cell_conv.py)


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
    """Estimates the memory of a trial; nothing is allocated or computed.

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
    two, three = (_kept(model, experiment, dtype, queries) for queries in (2, 3))
    return MemoryEstimate(
        weights=weights,
        gradients=parameters,
        optimiser=2 * parameters,
        activations=three - two,
        temporary=_temporary(experiment, dtype, device),
        ema=weights if experiment.train.ema else 0,
        # A CPU convolves in tiles wherever weights are large, without copies of them.
        copies=max(parameter.nbytes for parameter in model.parameters())
        + snapshot
        + _at_once(experiment, dtype, device)
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


def _kept(model: CDN, experiment: Experiment, dtype: torch.dtype, queries: int) -> int:
    """Returns the bytes, besides the model, that a forward pass keeps for the backward pass.

    Args:
        model: Without memory, in train mode.
        experiment: Its experiment.
        dtype: Format of the forward pass.
        queries: How many at once; two or more, or kernels mixed per query cannot be told from others.
    """
    data = experiment.data
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    visual = torch.empty(queries, data.frames, data.feature_size, device="meta")
    words = torch.empty(queries, _WORDS, data.word_size, device="meta")
    mask = torch.ones(queries, _WORDS, dtype=torch.bool, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _Watch(dtype) as watch:
        model(visual, words, mask)
    others = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers(), *watch.kernels)}
    sizes = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in (*saved, *watch.inputs)}
    return sum(size for storage, size in sizes.items() if storage not in others)


def _temporary(experiment: Experiment, dtype: torch.dtype, device: torch.device) -> int:
    """Returns the bytes per query that are occupied for a while, a generous count.

    Everywhere a few maps with their gradients. On a CPU also tiles under transform (model/mixed_conv.py), or kernels
    mixed per query: thrice, as they are, their gradient, and one in another order; and waiting batches.
    """
    model = experiment.model
    cells, channels = model.clips**2, model.hidden
    maps = 4 * cells * channels * 4
    if device.type != "cpu":
        return maps
    most = 0
    for kernel, dynamic in zip(model.map.kernel_sizes, model.map.dynamic, strict=True):
        if kernel <= 7 and kernel * channels >= _TILED:
            tiles = 3 * (-(-model.clips // 4)) ** 2 * (kernel + 3) ** 2 * channels * 4
            most = max(most, tiles)
        elif dynamic:
            most = max(most, 3 * kernel**2 * channels**2 * dtype.itemsize)
    waiting = _WAITING * experiment.data.frames * experiment.data.feature_size * 4
    return most + maps + waiting


def _at_once(experiment: Experiment, dtype: torch.dtype, device: torch.device) -> int:
    """Returns the bytes that the dearest layer with mixed kernels occupies for a while on a GPU, a generous count.

    However many queries there are (model/sample_conv.py): kernels of a few queries and all that these see of the map,
    both with their gradients, and experts in another order.
    """
    if device.type == "cpu":
        return 0
    model, most = experiment.model, 0
    for kernel, dynamic in zip(model.map.kernel_sizes, model.map.dynamic, strict=True):
        if dynamic:
            kernels = kernel**2 * model.hidden**2
            seen = kernel**2 * model.hidden * (model.clips + kernel - 1) ** 2
            queries = min(experiment.train.batch_size, samples_at_once(model.hidden, model.clips, kernel))
            most = max(most, 2 * queries * (kernels + seen) + 2 * model.map.experts * kernels)
    return most * dtype.itemsize


def _storage(tensor: Tensor) -> StorageWeakRef:
    """Returns what tells a tensor's memory from another's, also on the meta device, where it has no address."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
