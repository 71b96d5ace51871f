from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdn_tune.config import DataConfig
from cdn_tune.data.batches import (
    Indices,
    epoch_batches,
    epoch_generator,
    largest,
    pieces,
    prefetch,
    sequential_batches,
    shard,
    training_batches,
)
from cdn_tune.data.dataset import MomentDataset, load_split
from cdn_tune.errors import DataError

from .conftest import config_of

sizes = st.integers(1, 200)


@given(sizes, sizes, st.integers(0, 2**32 - 1), st.integers(0, 100))
def test_an_epoch_has_every_query_once(size: int, batch_size: int, seed: int, epoch: int) -> None:
    batches = epoch_batches(size, batch_size, epoch_generator(seed, epoch))
    assert sorted(np.concatenate(batches)) == list(range(size))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    again = epoch_batches(size, batch_size, epoch_generator(seed, epoch))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_the_order_never_changes() -> None:
    assert np.concatenate(epoch_batches(10, 4, epoch_generator(7, 3))).tolist() == [3, 5, 4, 7, 8, 0, 9, 2, 1, 6]


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_batches(50, 50, epoch_generator(seed, epoch))[0]) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_global_random_state_is_left_alone() -> None:
    before = np.random.get_state(legacy=True)[1].tolist()  # type: ignore[index]  # noqa: NPY002
    epoch_batches(50, 5, epoch_generator(0, 0))
    assert np.random.get_state(legacy=True)[1].tolist() == before  # type: ignore[index]  # noqa: NPY002


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    assert np.array_equal(*(np.concatenate(epoch_batches(30, size, epoch_generator(1, 2))) for size in (4, 7)))


@given(sizes, sizes)
def test_sequential_batches_are_in_order(size: int, batch_size: int) -> None:
    assert np.concatenate(sequential_batches(size, batch_size)).tolist() == list(range(size))


@given(st.integers(0, 50), st.integers(1, 9))
def test_shards_have_every_index_once(size: int, world: int) -> None:
    indices = np.random.default_rng(size).permutation(size)
    shards = [shard(indices, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shards)) == sorted(indices)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(("rank", "world"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match=f"rank={rank} .*world={world}"):
        shard(np.arange(4), rank, world)


@pytest.mark.parametrize(("size", "batch_size"), [(0, 4), (4, 0)])
def test_empty_sizes_are_refused(size: int, batch_size: int) -> None:
    for order in (
        lambda: epoch_batches(size, batch_size, epoch_generator(0, 0)),
        lambda: sequential_batches(size, batch_size),
    ):
        with pytest.raises(ValueError, match="at least 1"):
            order()


class Recorded:
    """Stands in for a dataset: returns the indices, records them, fails at 13."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def batch(self, indices: Indices) -> Any:
        self.seen.append(indices.tolist())
        if 13 in indices:
            raise DataError("video 'X' cannot be read")
        return indices


def numbers(count: int) -> list[Indices]:
    return [np.array([n]) for n in range(count)]


def fetch(dataset: Recorded, batches: list[Indices], **options: Any) -> Iterator[Any]:
    return prefetch(cast(MomentDataset, dataset), batches, **options)


def prefetching() -> bool:
    return any(thread.name == "cdn-tune-prefetch" for thread in threading.enumerate())


def test_batches_come_in_order_and_the_thread_ends() -> None:
    assert [batch.item() for batch in fetch(Recorded(), numbers(10))] == list(range(10))
    assert not prefetching()


def test_the_next_batches_are_assembled_ahead_but_not_all() -> None:
    dataset = Recorded()
    batches = fetch(dataset, numbers(50), ahead=2)
    next(batches)
    deadline = time.monotonic() + 5
    while len(dataset.seen) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(dataset.seen) == 4
    batches.close()  # type: ignore[attr-defined]
    assert not prefetching()


def test_an_error_is_raised_in_its_place() -> None:
    batches = fetch(Recorded(), numbers(20))
    assert [next(batches).item() for _ in range(13)] == list(range(13))
    with pytest.raises(DataError, match="video 'X'"):
        next(batches)
    assert not prefetching()


def test_a_consumer_that_stops_early_ends_the_thread() -> None:
    dataset = Recorded()
    for batch in fetch(dataset, numbers(1000)):
        if batch.item() == 3:
            break
    del batch
    deadline = time.monotonic() + 5
    while prefetching() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not prefetching()
    assert len(dataset.seen) < 20


def test_nothing_starts_before_it_is_asked_for() -> None:
    dataset = Recorded()
    fetch(dataset, numbers(5))
    assert dataset.seen == []


class Threads:
    """Stands in for a dataset whose batches are large enough to be computed by several OpenMP threads."""

    def batch(self, indices: Indices) -> Any:  # noqa: ARG002
        torch.randn(1 << 20).add_(1.0)
        return torch.get_num_threads()


def test_batches_are_assembled_without_a_team_of_threads_and_everybody_else_keeps_theirs() -> None:
    before = torch.get_num_threads()
    later: list[int] = []
    torch.set_num_threads(3)
    try:
        assert list(fetch(cast(Recorded, Threads()), numbers(2))) == [1, 1]
        assert torch.get_num_threads() == 3
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert later == [3]


def test_a_real_dataset_is_prefetched(planted_config: DataConfig) -> None:
    dataset = load_split(planted_config, "test")
    got = [batch.indices.tolist() for batch in prefetch(dataset, sequential_batches(len(dataset), 16), pin=True)]
    assert [index for indices in got for index in indices] == list(range(len(dataset)))


# ---- videos ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_videos(planted_root: Path) -> MomentDataset:
    return load_split(config_of(planted_root), "train")


def test_a_batch_of_videos_has_all_their_queries(of_videos: MomentDataset) -> None:
    epochs = [training_batches(of_videos, 4, seed=3, epoch=epoch, of_videos=True) for epoch in (1, 1, 2)]
    videos = len(np.unique(of_videos.videos))
    assert [len(batch) for batch in epochs[0]] == [min(4, videos - first) for first in range(0, videos, 4)]
    for batches in epochs:
        samples = [sample for batch in batches for sample in batch]
        assert sorted(np.concatenate(samples).tolist()) == list(range(len(of_videos)))
        for sample in samples:
            (number,) = np.unique(of_videos.videos[sample])
            assert sample.tolist() == np.flatnonzero(of_videos.videos == number).tolist()
    orders = [[sample.tolist() for batch in batches for sample in batch] for batches in epochs]
    assert orders[0] == orders[1] != orders[2]


def test_a_batch_of_queries_is_as_before(of_videos: MomentDataset) -> None:
    """Runs that began with an earlier version go on in their order."""
    batches = training_batches(of_videos, 8, seed=7, epoch=3)
    expected = epoch_batches(len(of_videos), 8, epoch_generator(7, 3))
    assert [np.concatenate(batch).tolist() for batch in batches] == [batch.tolist() for batch in expected]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("kind", ["videos", "sequences"])
def test_no_share_and_no_piece_tears_a_video(
    of_videos: MomentDataset, planted_root: Path, workers: int, kind: str
) -> None:
    dataset = load_split(config_of(planted_root), "train", sequences=True) if kind == "sequences" else of_videos
    for batch in training_batches(dataset, 7, seed=0, epoch=1, of_videos=True):
        if len(batch) < workers:
            continue
        shares = [shard(batch, rank, workers) for rank in range(workers)]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        found = [sample for share in shares for sample in share]
        assert sorted(map(id, found)) == sorted(map(id, batch))
        for share in shares:
            whole = dataset.batch(np.concatenate(share))
            for count in range(1, len(share) + 1):
                parts = pieces(whole, share, count)
                assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)
                sizes = np.array([len(sample) for sample in share])
                assert [len(part) for part in parts] == [sum(some) for some in np.array_split(sizes, count)]


def test_memory_is_tried_with_the_samples_of_most_queries(of_videos: MomentDataset) -> None:
    batches = training_batches(of_videos, 4, seed=3, epoch=1, of_videos=True)
    most = sorted(np.bincount(of_videos.videos).tolist(), reverse=True)
    assert [len(largest(batches, count)) for count in (1, 3)] == [most[0], sum(most[:3])]
    assert largest(training_batches(of_videos, 4, seed=3, epoch=1), 5).shape == (5,)
