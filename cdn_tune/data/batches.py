"""Batches: the order of an epoch, a worker's share of it, and assembling ahead of the consumer."""

import queue
import threading
from collections.abc import Generator, Iterable
from contextlib import suppress
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.data.dataset import Batch, MomentDataset, SequenceDataset

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
    order = _generator(seed, epoch).permutation(size).astype(np.int64)
    return [order[some] for some in places]


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))


def sequential_batches(size: int, batch_size: int) -> list[Indices]:
    """Returns range(size) cut every `batch_size`, in order: the batches of an evaluation.

    Raises:
        ValueError: If `size` or `batch_size` is below 1.
    """
    if size < 1 or batch_size < 1:
        raise ValueError(f"size={size} and batch_size={batch_size} must be at least 1")
    order = np.arange(size, dtype=np.int64)
    return [order[first : first + batch_size] for first in range(0, size, batch_size)]


def training_batches(dataset: MomentDataset, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """Returns the global batches of one epoch of a dataset, which follow from the arguments alone.

    Of queries as `epoch_batches` has them. Of videos, each with some of its queries (see `SequenceDataset.samples`), in
    random order; what does not fill the last batch is left out, unless there is no other.

    Args:
        dataset: The train split.
        batch_size: Queries, or videos, of a global batch.
        seed: The experiment's seed, >= 0.
        epoch: Number of the epoch, >= 0.
    """
    if not isinstance(dataset, SequenceDataset):
        return epoch_batches(len(dataset), batch_size, seed, epoch)
    generator = _generator(seed, epoch)
    samples = dataset.samples(generator)
    order = generator.permutation(len(samples))
    groups = [order[some] for some in sequential_batches(len(samples), batch_size)]
    whole = [group for group in groups if len(group) == batch_size] or groups
    return [np.concatenate([samples[each] for each in group]) for group in whole]


def evaluation_batches(dataset: MomentDataset, chosen: Indices, batch_size: int) -> list[Indices]:
    """Returns the queries `chosen` of a dataset in batches: in their order, cut every `batch_size`.

    Where videos are read as sequences their queries stand together, and a video is cut only if it has more than
    `batch_size`, so that each is encoded once.
    """
    if not isinstance(dataset, SequenceDataset):
        return [chosen[some] for some in sequential_batches(len(chosen), batch_size)]
    videos = dataset.videos[chosen]
    order = np.argsort(videos, kind="stable")
    pieces: list[list[int]] = [[]]
    for queries in np.split(chosen[order], np.flatnonzero(np.diff(videos[order])) + 1):
        if len(pieces[-1]) + len(queries) > batch_size:
            pieces.append([])
        for first in range(0, len(queries), batch_size):
            if len(pieces[-1]) == batch_size:
                pieces.append([])
            pieces[-1] += queries[first : first + batch_size].tolist()
    return [np.array(piece, dtype=np.int64) for piece in pieces if piece]


def shard(indices: Indices, rank: int, world: int, by_video: bool = False) -> Indices:
    """Returns one worker's share of a global batch: every `world`-th index from `rank`, or those side by side.

    The latter for batches of videos, whose queries then stay together. The shares of all ranks are disjoint, together
    the whole, and differ in size by at most one; a share is empty when the batch has fewer indices than there are
    workers.

    Raises:
        ValueError: If `rank` is not within [0, world).
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank} is not within [0, world={world})")
    return np.array_split(indices, world)[rank] if by_video else indices[rank::world]


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
