"""Videos as sequences: from the cache, in batches of videos, in parts that follow from seed and epoch alone."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from cdn_tune.config import SequenceConfig
from cdn_tune.data import clip_cache
from cdn_tune.data import dataset as datasets
from cdn_tune.data.batches import evaluation_batches, training_batches
from cdn_tune.data.clip_map import PART
from cdn_tune.data.dataset import MomentDataset, SequenceBatch, SequenceDataset, load_readings, load_split
from cdn_tune.data.sequence_store import SequenceStore, sequence_of, timed
from cdn_tune.errors import DataError

from .conftest import config_of

VARIABLE: dict[str, Any] = {"form": "variable", "length": 100, "crop": (0.7, 0.9), "queries": 3}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CDN_TUNE_CACHE", str(folder))
    return folder


def train(root: Path, **settings: Any) -> SequenceDataset:
    config = config_of(root).model_copy(update={"sequence": SequenceConfig(**settings)})
    dataset = load_split(config, "train", sequences=True)
    assert isinstance(dataset, SequenceDataset)
    return dataset


def test_clips_and_sequences_share_one_vocabulary(planted_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, build = [], datasets.build_vocabulary
    monkeypatch.setattr(datasets, "build_vocabulary", lambda *given: built.append(build(*given)) or built[-1])
    found = load_readings(config_of(planted_root), ("train", "val"), (False, True))
    assert {each: [type(part) for part in splits.values()] for each, splits in found.items()} == {
        False: [MomentDataset] * 2,
        True: [SequenceDataset] * 2,
    }
    assert [part.vocabulary for splits in found.values() for part in splits.values()] == built * 4
    assert len({part.features for splits in found.values() for part in splits.values()}) == 2


# ---- the store -------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "features.hdf5"
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(4):
            file[f"V{number}"] = random.standard_normal((3 * number + 1, 4), dtype=np.float32)
    return path


def opened(source: Path, dtype: str = "float32", **settings: Any) -> SequenceStore:
    store = SequenceStore(source, SequenceConfig(**settings), 4)
    store.prepare([f"V{number}" for number in range(4)], dtype)
    return store


@pytest.mark.parametrize("settings", [{"form": "variable", "every": 2}, {"length": 6, "normalise": True}])
def test_sequences_come_from_the_cache(source: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Built once, mapped by every process, rebuilt where damaged, and computed where there is no cache."""
    with h5py.File(source) as file:
        expected = {video: sequence_of(file[video][:], SequenceConfig(**settings)) for video in file}
    opened(source, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(SequenceStore, "_compute", lambda *_: pytest.fail("read again"))
        store = opened(source, **settings)
        for each in (store, pickle.loads(pickle.dumps(store))):
            parts = torch.tensor([[0, len(expected["V3"])], [1, 1], [0, len(expected["V0"])]])
            found, mask = each.padded(["V3", "V2", "V0"], parts)
            assert mask.sum(dim=1).tolist() == parts[:, 1].tolist()
            assert torch.equal(found[0], expected["V3"])
            assert torch.equal(found[1][mask[1]], expected["V2"][1:2])
            assert torch.equal(found[2][mask[2]], expected["V0"])
            assert not found[~mask].any()
            assert each.timed("V3", 20.0) == timed(SequenceConfig(**settings), 10, 20.0)
    (part,) = clip_cache.user_cache().glob(f"clips/*/part-*/{PART}")
    part.write_text(part.read_text().replace('"videos": ["V0", ', '"videos": ["V9", "V0", '))
    again = opened(source, **settings)
    assert torch.equal(again.padded(["V3"], torch.tensor([[0, len(expected["V3"])]]))[0][0], expected["V3"])
    monkeypatch.setenv("CDN_TUNE_CACHE_LIMIT", "1")
    shutil.rmtree(clip_cache.user_cache())
    without = opened(source, **settings)
    assert without.mapped is None
    assert torch.equal(without.padded(["V3"], torch.tensor([[0, len(expected["V3"])]]))[0][0], expected["V3"])
    assert without.timed("V3", 20.0) == timed(SequenceConfig(**settings), 10, 20.0)


def test_half_precision_rounds(source: Path) -> None:
    whole, half = (opened(source, dtype, form="variable") for dtype in ("float32", "float16"))
    part = torch.tensor([[0, 10]])
    exact, rounded = whole.padded(["V3"], part)[0], half.padded(["V3"], part)[0]
    assert torch.equal(rounded, exact.half().float())
    assert not torch.equal(rounded, exact)


@pytest.mark.parametrize("settings", [{"length": 8}, {"form": "variable"}, {"form": "variable", "clip_size": 3}])
def test_unknown_rates_span_the_video(settings: dict[str, Any]) -> None:
    """The first clip begins at 0, the last ends with the video."""
    steps, grid = timed(SequenceConfig(**settings), 12, 30.0)
    first, last = grid.to_seconds(0.0), grid.to_seconds(steps - 1.0)
    assert first == pytest.approx(30.0 - last)
    assert first == pytest.approx(0.5 * grid.clip_size / float(grid.fps))


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_has_each_video_once(planted_root: Path) -> None:
    dataset = train(planted_root, form="variable")
    queries = np.argsort(dataset.videos, kind="stable")[:7][::-1].copy()
    batch = dataset.batch(queries)
    assert batch.indices.tolist() == queries.tolist()
    assert len(batch.sequence) == len(np.unique(dataset.videos[queries])) < 7
    for row, query in zip(batch.rows.tolist(), queries.tolist(), strict=True):
        item = dataset.annotations[query]
        with h5py.File(dataset.features.path) as file:
            frames = file[item.video][:]
        assert np.array_equal(batch.sequence[row][batch.sequence_mask[row]].numpy(), frames)
        step = item.duration / len(frames)
        assert batch.times[row].tolist() == pytest.approx([step / 2, step])
    part = batch.part(slice(2, 4))
    assert isinstance(part, SequenceBatch)
    assert torch.equal(part.frames, batch.frames[2:4])
    assert len(part.sequence) == len(np.unique(dataset.videos[queries[2:4]]))
    own = {field.name for field in fields(SequenceBatch)} - {"sequence", "sequence_mask", "times", "rows"}
    assert all(torch.equal(getattr(part, name), getattr(batch, name)[2:4]) for name in own)


def test_parts_of_videos_keep_their_seconds(planted_root: Path) -> None:
    """The same features at the same seconds; moments are cut to the part."""
    dataset = train(planted_root, **VARIABLE, clip_size=2)
    whole = dataset.batch([0])
    steps = int(whole.sequence_mask.sum())
    batch = dataset.batch(np.array([[0, 3, 5], [0, 3, 5], [0, 0, steps]]))
    assert batch.rows.tolist() in ([1, 1, 0], [0, 0, 1])
    row = batch.rows[0]
    assert torch.equal(batch.sequence[row][batch.sequence_mask[row]], whole.sequence[0, 3:8])
    assert batch.times[row, 1] == whole.times[0, 1]
    assert batch.times[row, 0].item() == pytest.approx(float(whole.times[0, 0] + 3 * whole.times[0, 1]))
    start, end = whole.moments[0].tolist()
    step = float(whole.times[0, 1])
    low, high = (
        3 * step,
        (3 + 5 + 2) * step,
    )  # as published, to a step after the last
    assert batch.moments[0].tolist() == pytest.approx([min(max(start, low), high), min(max(end, low), high)])


@pytest.mark.parametrize("settings", [{"queries": 2}, VARIABLE, {**VARIABLE, "crop": None}])
def test_an_epoch_has_no_query_twice(planted_root: Path, settings: dict[str, Any]) -> None:
    dataset = train(planted_root, **settings)
    epochs = [list(map(np.concatenate, training_batches(dataset, 2, seed=5, epoch=epoch))) for epoch in (1, 1, 2)]
    assert all(map(np.array_equal, epochs[0], epochs[1]))
    assert not all(map(np.array_equal, epochs[0], epochs[2]))
    assert len(epochs[0]) == len(epochs[2])
    seen = np.concatenate(epochs[0])[:, 0]
    assert len(np.unique(seen)) == len(seen)
    (whole,) = map(np.concatenate, training_batches(dataset, 10_000, seed=5, epoch=1))
    assert np.array_equal(np.unique(dataset.videos[whole[:, 0]]), np.unique(dataset.videos))
    if dataset.features.config.form == "fixed":  # else of many queries that a part holds only some are taken
        assert sorted(whole[:, 0].tolist()) == list(range(len(dataset)))
    assert len(whole) - len(seen) <= settings["queries"]  # those of an incomplete batch
    for indices in epochs[0]:
        batch = dataset.batch(indices)
        assert len(batch.sequence) <= 2
        assert batch.rows.bincount().max() <= settings["queries"]
        items = [dataset.annotations[query] for query in batch.indices.tolist()]
        wanted = torch.tensor([[item.start, item.end] for item in items], dtype=torch.float64)
        assert bool(((batch.moments[:, 1] - batch.moments[:, 0]) > 0.5 * (wanted[:, 1] - wanted[:, 0])).all())


def test_random_queries_of_every_video(planted_root: Path) -> None:
    dataset = train(planted_root, groups="random", queries=1)
    epochs = [
        np.concatenate([sample for (sample,) in training_batches(dataset, 1, seed=0, epoch=epoch)])[:, 0]
        for epoch in range(1, 9)
    ]
    for epoch in epochs:
        assert sorted(dataset.videos[epoch].tolist()) == np.unique(dataset.videos).tolist()
    assert len(np.unique(np.concatenate(epochs))) > len(epochs[0])


def test_evaluation_reads_each_video_once(planted_root: Path) -> None:
    dataset = train(planted_root)
    chosen = np.arange(len(dataset))[::-1]
    batches = evaluation_batches(dataset, chosen, 5)
    assert sorted(np.concatenate(batches).tolist()) == sorted(chosen.tolist())
    assert max(map(len, batches)) <= 5
    most = max(np.bincount(dataset.videos))
    assert most <= 5
    assert sum(len(np.unique(dataset.videos[batch])) for batch in batches) == len(np.unique(dataset.videos))
    cut = evaluation_batches(dataset, chosen, 2)
    assert sorted(np.concatenate(cut).tolist()) == sorted(chosen.tolist())
    assert max(map(len, cut)) <= 2


def test_a_moment_that_no_part_holds(planted_root: Path) -> None:
    dataset = train(planted_root, form="variable", length=1)
    with pytest.raises(DataError, match=r"is too long for a part of 1 steps; set data\.sequence\.length="):
        training_batches(dataset, 2, seed=0, epoch=1)
