"""Available memory, out-of-memory errors, and the number of queries or videos computed at once."""

import gc
import logging
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from cdn_tune.config import Experiment
from cdn_tune.data.batches import Samples, largest
from cdn_tune.data.dataset import Batch, MomentDataset
from cdn_tune.errors import MemoryShortage
from cdn_tune.model.family import MomentModel
from cdn_tune.training.memory.estimate import MemoryEstimate, counts, estimate
from cdn_tune.training.step.batch_loss import batch_loss
from cdn_tune.training.step.process_group import World

GIB = 1 << 30
UNKNOWN = 1 << 60  # bytes available where the system reports none
_CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # v2, v1
_ONE = {  # what micro-batches are made of, and which keys say how many queries that has
    "queries": ("query", ""),
    "videos": ("video with its queries", ", how many these are (train.batch_of, data.sequence.queries)"),
}
_log = logging.getLogger(__name__)
_SIGNS = ("out of memory", "not enough memory", "allocate memory", "alloc_failed")  # in a RuntimeError's message
_LONGEST = 160  # characters of a library's own message


def available_bytes(device: torch.device) -> int:
    """Returns the bytes that can still be allocated: on a GPU, or on the machine within its control groups' limits."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return min(_machine_bytes(), *_cgroup_bytes(), UNKNOWN)


def peak_bytes(device: torch.device) -> int:
    """Returns the most bytes that this process has used so far, on the GPU if there is one."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # Linux counts KiB


def release_memory() -> None:
    """Frees what a trial has left in this process's caches on the GPU, and resets its peak, for the next trial."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def is_shortage(error: BaseException) -> bool:
    """Returns whether an error is a lack of memory."""
    if isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS):
        return True
    return isinstance(error, MemoryError | torch.OutOfMemoryError)


@contextmanager
def memory_errors(when: str) -> Iterator[None]:
    """Turns a lack of memory within the block into one line; `when` is such as ``at epoch 2, step 7``.

    Raises:
        MemoryShortage: If the block lacked memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        words = " ".join(str(error).split())[:_LONGEST]
        raise MemoryShortage(
            f"out of memory {when}{f' ({words})' if words else ''}; lower train.micro_batch, eval.batch_size, "
            "data.frames or the sizes under model"
        ) from error


def choose_micro_batch(
    experiment: Experiment,
    model: MomentModel,
    dataset: MomentDataset,
    batches: Sequence[Samples],
    world: World,
    dtype: torch.dtype,
) -> int | None:
    """Returns `train.micro_batch`, or for `auto` the largest that fits; None for a worker's whole share of a batch.

    On one GPU the choice is tried. Several workers choose by the estimate alone, because they normalise together and
    could not fail one by one; a CPU reports no lack of memory before it is too late.

    Args:
        experiment: The trial.
        model: Its model, on its device; weights, statistics and random numbers are left as they are.
        dataset: The train split.
        batches: Its batches in an epoch.
        world: The trial's workers.
        dtype: Format of the forward pass.

    Raises:
        MemoryShortage: If not even one sample fits.
    """
    chosen = experiment.train.micro_batch
    share = -(-max(map(len, batches)) // world.size)
    if chosen != "auto":
        return None if chosen >= share else chosen

    def attempt(size: int) -> None:
        if world.device.type == "cuda" and world.size == 1:
            _try(model, dataset.batch(largest(batches, size)), world, dtype)

    free = available_bytes(world.device) // (1 if world.device.type == "cuda" else world.size)
    if all(world.gather(_fits_easily(experiment, model, batches, share, free, dtype, world.device))):
        return None
    need = estimate(experiment, dtype, world.device, batches)
    held = need.weights + need.ema  # the model is there already
    size = min(world.gather(fit_micro_batch(share, need, free + held, attempt, experiment.batch_of)))
    return None if size >= share else size


def _fits_easily(
    experiment: Experiment,
    model: MomentModel,
    batches: Sequence[Samples],
    share: int,
    free: int,
    dtype: torch.dtype,
    device: torch.device,
) -> bool:
    """Returns whether memory for `share` samples is plenty by a generous bound, which saves the time to estimate."""
    each, queries = counts(experiment, batches)
    need = model.memory(experiment.steps, queries, dtype, device)
    weights = 6 * 4 * sum(weight.numel() for weight in model.parameters())
    return need is not None and weights + share * each * need.bound < free // 4


def _try(model: MomentModel, batch: Batch, world: World, dtype: torch.dtype) -> None:
    """Computes a batch's loss and its gradient, and restores the model and the random numbers."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[world.device]):
            _next = batch.to(world.device)  # is copied while a step is under way
            torch.autograd.backward(batch_loss(model.train(), batch.to(world.device), dtype)[0])
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        torch.cuda.empty_cache()


def fit_micro_batch(
    batch: int,
    need: MemoryEstimate,
    available: int,
    attempt: Callable[[int], None],
    of: Literal["queries", "videos"] = "queries",
) -> int:
    """Returns how many samples to compute at once: the batch or, halved as often as needed, what fits.

    Args:
        batch: Samples that a worker computes for one step.
        need: The estimate, at which to begin.
        available: Bytes for all of it.
        attempt: Computes a loss and its gradient for so many samples, or raises for lack of memory.
        of: What samples are.

    Raises:
        MemoryShortage: If not even one sample fits.
    """
    size = batch
    while size > 1 and need.total(size) > available:
        size = -(-size // 2)
    about = f"{_gib(need.total(size))} estimated for {size} of {batch} {of} at once, {_gib(available)} available"
    _log.log(logging.INFO if need.total(size) <= available else logging.WARNING, "memory: %s", about)
    while not _succeeds(attempt, size):
        torch.cuda.empty_cache()
        if size == 1:
            one, fewer = _ONE[of]
            raise MemoryShortage(
                f"out of memory with one {one} at once: about {_gib(need.total(1))} needed, {_gib(available)} "
                f"available; lower data.frames{fewer} or the sizes under model"
            )
        _log.warning("memory: %d %s at once do not fit, trying %d", size, of, -(-size // 2))
        size = -(-size // 2)
    _log.info("memory: %d of %d %s at once", size, batch, of)
    return size


def _succeeds(attempt: Callable[[int], None], size: int) -> bool:
    """Returns whether memory sufficed for an attempt; with the exception, all that it held is freed on return."""
    try:
        attempt(size)
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        return False
    return True


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


def _machine_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return UNKNOWN
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), UNKNOWN)


def _cgroup_bytes(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Yields what is left within the limit of each control group that this process is in, as `membership` lists."""
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
                most, with_cache = _number(folder / limit), _number(folder / usage)
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
    """Returns the bytes of a control group's file cache that are freed first."""
    try:
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    values = dict(line.split() for line in lines)
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))
