"""How much memory a trial needs, how much there is, and how many queries at once that allows.

Letters: C channels (the hidden size), S clips, K kernel size.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from cdn_tune.config import Experiment
from cdn_tune.errors import MemoryShortage
from cdn_tune.model import CDN
from cdn_tune.model.sample_conv import AT_ONCE
from cdn_tune.training.shortage import is_shortage
from cdn_tune.training.size import model_without_memory

GIB = 1 << 30
UNKNOWN = 1 << 60  # bytes available where nobody tells

_WAITING = 3  # batches assembled ahead of the step (data/batches.py)
_WORDS = 30  # of a query, at most as a rule
# What autocast computes in short numbers.
_LOWERED = frozenset(["linear", "conv1d", "conv2d", "bmm", "matmul", "__matmul__"])
_TILED = 1024  # from this product of channels and kernel size on a CPU convolves in tiles (model/cell_conv.py)
_CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # v2, v1

_log = logging.getLogger(__name__)


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
            it is added to the others; on a CPU also the copy that a checkpoint is written from.
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


def available_bytes(device: torch.device) -> int:
    """Returns how much memory can still be had: of a GPU, or of the machine within its control group's limit."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return min(_machine_bytes(), *_cgroup_bytes(), UNKNOWN)


def peak_bytes(device: torch.device) -> int:
    """Returns the most memory that was in use so far: of the GPU by this process, else by this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # Linux counts KiB


def fit_micro_batch(batch: int, need: MemoryEstimate, available: int, attempt: Callable[[int], None]) -> int:
    """Returns how many queries to compute at once: the batch or, halved as often as needed, what fits.

    Args:
        batch: Queries that a worker computes for one step.
        need: The estimate, which tells where to begin.
        available: Bytes there are for all of it.
        attempt: Computes a loss and its gradient for so many queries, or raises for lack of memory.

    Raises:
        MemoryShortage: If not even one query fits.
    """
    size = batch
    while size > 1 and need.total(size) > available:
        size = -(-size // 2)
    about = f"{_gib(need.total(size))} estimated for {size} of {batch} queries at once, {_gib(available)} available"
    _log.log(logging.INFO if need.total(size) <= available else logging.WARNING, "memory: %s", about)
    while not _succeeds(attempt, size):
        torch.cuda.empty_cache()
        if size == 1:
            raise MemoryShortage(
                f"out of memory with one query at once: about {_gib(need.total(1))} needed, {_gib(available)} "
                f"available; lower model.hidden, model.map.experts, model.map.layers, model.clips or data.frames"
            )
        _log.warning("memory: %d queries at once do not fit, trying %d", size, -(-size // 2))
        size = -(-size // 2)
    _log.info("memory: %d of %d queries at once", size, batch)
    return size


def _succeeds(attempt: Callable[[int], None], size: int) -> bool:
    """Tells whether an attempt had the memory it needed; with the exception, all that it held is gone on return."""
    try:
        attempt(size)
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        return False
    return True


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
            args = tree_map(self._lower, args)
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
    most = 0
    for kernel, dynamic in zip(model.map.kernel_sizes, model.map.dynamic, strict=True):
        if device.type != "cpu":
            continue
        if kernel <= 7 and kernel * channels >= _TILED:
            tiles = 3 * (-(-model.clips // 4)) ** 2 * (kernel + 3) ** 2 * channels * 4
            most = max(most, tiles)
        elif dynamic:
            most = max(most, 3 * kernel**2 * channels**2 * dtype.itemsize)
    waiting = _WAITING * experiment.data.frames * experiment.data.feature_size * 4 if device.type == "cpu" else 0
    return most + 4 * cells * channels * 4 + waiting


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
            queries = min(experiment.train.batch_size, max(1, AT_ONCE // max(kernels, seen)))
            most = max(most, 2 * queries * (kernels + seen) + 2 * model.map.experts * kernels)
    return most * dtype.itemsize


def _machine_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return UNKNOWN
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), UNKNOWN)


def _cgroup_bytes(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Yields what is left within the limit of each control group that this process is in.

    Args:
        root: Where control groups are mounted.
        membership: The file that tells which of them.
    """
    try:
        lines = [line.split(":", 2) for line in membership.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        inner = top / path.lstrip("/")
        for folder in (inner, *inner.parents):
            for limit, usage in _CGROUP_FILES:
                with_cache = _number(folder / usage)
                most = _number(folder / limit)
                if most is not None and with_cache is not None:
                    yield max(most - with_cache + _file_cache(folder), 0)
            if folder == top:
                break


def _number(path: Path) -> int | None:
    """Returns the number in a file; None if there is no file, or a word such as ``max`` in it."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _file_cache(folder: Path) -> int:
    """Returns a control group's file cache that would be given up first."""
    try:
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    values = dict(line.split() for line in lines)
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
