"""Batches: the order of an epoch, a worker's share of it, and assembling ahead of the consumer."""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from cdn_tune.data.dataset import Batch, Indices, MomentDataset, SequenceDataset, grouped

Samples = Sequence[Indices]  # what a dataset's `batch` takes, of each sample


class Source(Protocol):
    """What assembles batches: a dataset, or the changes of one."""

    def batch(self, indices: Indices) -> Batch:
        """Returns the queries at `indices`, in that order."""


class PaddedWords:
    """A source whose queries are padded to a multiple of so many words: few lengths occur."""

    def __init__(self, source: Source, multiple: int) -> None:
        self._source, self._multiple = source, multiple

    def batch(self, indices: Indices) -> Batch:
        """Returns the queries at `indices`, in that order."""
        batch = self._source.batch(indices)
        more = -batch.words.shape[1] % self._multiple
        words, mask = functional.pad(batch.words, (0, 0, 0, more)), functional.pad(batch.word_mask, (0, more))
        return replace(batch, words=words, word_mask=mask)


def epoch_batches(size: int, batch_size: int, generator: np.random.Generator) -> list[Indices]:
    """Returns a random permutation of range(size), cut every `batch_size`; the last batch has what is left.

    Raises:
        ValueError: If `size` or `batch_size` is below 1.
    """
    places = sequential_batches(size, batch_size)
    order = generator.permutation(size).astype(np.int64)
    return [order[some] for some in places]


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """Returns the generator of all that is random in the batches of one epoch; both arguments >= 0."""
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


def training_batches(
    dataset: MomentDataset, batch_size: int, seed: int, epoch: int, of_videos: bool = False
) -> list[Samples]:
    """Returns the global batches of one epoch, as lists of samples in random order.

    They depend on the arguments alone, so they are the same for every number of workers and after a resume. What does
    not fill the last batch is a batch too, or where the dataset says so left out, unless there is no other.

    Args:
        dataset: The train split.
        batch_size: Samples of a global batch, over all workers.
        seed: The experiment's seed, >= 0.
        epoch: Number of the epoch, >= 0.
        of_videos: Whether a sample is a video with its queries; else a query.
    """
    generator = epoch_generator(seed, epoch)
    samples = dataset.samples(generator, of_videos)
    batches = epoch_batches(len(samples), batch_size, generator)
    if not dataset.keeps_last:
        batches = [batch for batch in batches if len(batch) == batch_size] or batches
    return [[samples[each] for each in batch] for batch in batches]


def largest(batches: Iterable[Samples], count: int) -> Indices:
    """Returns the `count` samples with the most queries, as one batch: that for which memory has to suffice."""
    samples = [sample for batch in batches for sample in batch]
    return np.concatenate(sorted(samples, key=len, reverse=True)[:count])


def pieces(batch: Batch, samples: Samples, count: int) -> list[Batch]:
    """Returns a batch, made of some samples in their order, cut into so many parts of whole samples."""
    ends = np.cumsum([len(sample) for sample in samples])
    parts = [int(ends[part[-1]]) for part in np.array_split(np.arange(len(samples)), count)]
    return [batch.part(slice(first, last)) for first, last in pairwise([0, *parts])]


def evaluation_batches(dataset: MomentDataset, chosen: Indices, batch_size: int) -> list[Indices]:
    """Returns the queries `chosen` of a dataset in batches: in their order, cut every `batch_size`.

    Where videos are read as sequences their queries stand together, and a video is cut only if it has more than
    `batch_size`, so that each is encoded once.
    """
    if not isinstance(dataset, SequenceDataset):
        return [chosen[some] for some in sequential_batches(len(chosen), batch_size)]
    batches: list[list[int]] = [[]]
    for places in grouped(dataset.videos[chosen]):
        queries = chosen[places].tolist()
        if len(batches[-1]) + len(queries) > batch_size:
            batches.append([])
        for first in range(0, len(queries), batch_size):
            if len(batches[-1]) == batch_size:
                batches.append([])
            batches[-1] += queries[first : first + batch_size]
    return [np.array(batch, dtype=np.int64) for batch in batches if batch]


def shard(samples: Samples, rank: int, world: int) -> Samples:
    """Returns one worker's share of a global batch: every `world`-th sample from `rank`.

    The shares of all ranks are disjoint, together the whole, and differ in size by at most one; a share is empty when
    the batch has fewer samples than there are workers.

    Raises:
        ValueError: If `rank` is not within [0, world).
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank} is not within [0, world={world})")
    return samples[rank::world]


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


def copied_ahead(
    batches: Iterable[Batch], device: torch.device, aside: torch.cuda.Stream
) -> Iterator[tuple[Batch, Batch]]:
    """Yields batches, each with its copy on a GPU, in order.

    A batch is copied on the stream `aside` as soon as what the GPU was given before the one before it is done: while
    the step on that one is under way. A copy is used on the current stream, and forgotten before the next is asked for.
    The memory of copies stays with `aside`, which therefore is the same for all epochs.
    """
    waiting: tuple[Batch, Batch, torch.cuda.Event] | None = None
    for batch in batches:
        # The memory of copies is that of this stream, and free again once what has been issued is done with them.
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            following = batch, batch.to(device), aside.record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = following
        del following
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(batch: Batch, copy: Batch, copied: torch.cuda.Event) -> tuple[Batch, Batch]:
    """Has the current stream wait for a copy, and returns the batch with it."""
    torch.cuda.current_stream(copy.durations.device).wait_event(copied)
    return batch, copy
