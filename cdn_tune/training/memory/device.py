"""How much memory there is, and how many queries at once that allows."""

from __future__ import annotations

import gc
import logging
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from cdn_tune.errors import MemoryShortage
from cdn_tune.training.memory.estimate import MemoryEstimate
from cdn_tune.training.memory.out_of_memory import is_shortage

GIB = 1 << 30
UNKNOWN = 1 << 60  # bytes available where nobody tells

_CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # v2, v1

_log = logging.getLogger(__name__)


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


def release_memory() -> None:
    """Gives back what a trial has left in this process's caches, and forgets its peak, for the next one on the GPU."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


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
                "available; lower data.frames or the sizes under model"
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


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
