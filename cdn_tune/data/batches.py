"""Batches: the order of an epoch, a worker's share of it, and assembling ahead of the consumer."""

import queue
import threading
from collections.abc import Generator, Iterable
from contextlib import suppress
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.data.dataset import Batch

Indices = npt.NDArray[np.int64]


class Source(Protocol):
    """What assembles batches: a dataset, or the changes of one."""

    def batch(self, indices: Indices) -> Batch:
        """Returns the queries at `indices`, in that order."""


def epoch_batches(size: int, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """Returns the global batches of one epoch: a permutation of range(size), cut every `batch_size`.

    It depends on the four arguments alone, so it is the same for every number of workers and after a resume. The last
    batch has what is left.

    Args:
        size: Number of queries.
        batch_size: Global batch size, over all workers.
        seed: The experiment's seed, >= 0.
        epoch: Number of the epoch, >= 0.

    Raises:
        ValueError: If `size` or `batch_size` is below 1.
    """
    places = sequential_batches(size, batch_size)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    order = generator.permutation(size).astype(np.int64)
    return [order[some] for some in places]


def sequential_batches(size: int, batch_size: int) -> list[Indices]:
    """Returns range(size) cut every `batch_size`, in order: the batches of an evaluation.

    Raises:
        ValueError: If `size` or `batch_size` is below 1.
    """
    if size < 1 or batch_size < 1:
        raise ValueError(f"size={size} and batch_size={batch_size} must be at least 1")
    order = np.arange(size, dtype=np.int64)
    return [order[first : first + batch_size] for first in range(0, size, batch_size)]


def shard(indices: Indices, rank: int, world: int) -> Indices:
    """Returns one worker's share of a global batch: every `world`-th index from `rank`.

    The shares of all ranks are disjoint, together the whole, and differ in size by at most one; a share is empty when
    the batch has fewer indices than there are workers.

    Raises:
        ValueError: If `rank` is not within [0, world).
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank} is not within [0, world={world})")
    return indices[rank::world]


def prefetch(
    dataset: Source, batches: Iterable[Indices], pin: bool = False, ahead: int = 2
) -> Generator[Batch, None, None]:
    """Yields the batches in order, the next ones assembled by one background thread meanwhile.

    An error in the thread is raised here, in the place of the batch it concerns. The thread ends with the iterator:
    at its end, when it is closed, or when it is garbage collected.

    Args:
        dataset: Assembles the batches.
        batches: Indices of each batch.
        pin: Put batches in page-locked memory if CUDA is available.
        ahead: How many batches may wait.

    Raises:
        DataError: If a video's features cannot be used.
    """
    pin = pin and torch.cuda.is_available()
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=max(ahead, 1))
    stop, alone = threading.Event(), threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def assemble() -> None:
        # A second team of OpenMP threads would outnumber the processors, and then the consumer's own team sleeps at
        # every barrier instead of spinning: steps of a small model take twice as long.
        torch.get_num_threads()  # the first call in a thread copies the process's number
        torch.set_num_threads(1)
        alone.set()
        try:
            for indices in batches:
                if stop.is_set():
                    return
                batch = dataset.batch(indices)
                put(batch.pin_memory() if pin else batch)
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=assemble, name="cdn-tune-prefetch", daemon=True)
    threads = torch.get_num_threads()
    thread.start()
    try:
        alone.wait()
        torch.set_num_threads(threads)  # for this thread nothing new, but those to come take after the last call
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        with suppress(queue.Empty):
            ready.get_nowait()
        thread.join()
