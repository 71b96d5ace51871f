from __future__ import annotations

import json
import pickle
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdn_tune.config import DataConfig
from cdn_tune.data.dataset import Batch, MomentDataset, load_split, load_splits
from cdn_tune.errors import DataError

from .conftest import Small


@pytest.fixture(scope="module")
def dataset(planted_root: Path) -> MomentDataset:
    from .conftest import config_of

    return load_split(config_of(planted_root), "train")


def test_shapes_and_types(dataset: MomentDataset) -> None:
    batch = dataset.batch([3, 0, 7])
    longest = max(len(dataset.vocabulary.ids(dataset.annotations[i].query)) for i in (3, 0, 7))
    expected = {
        "visual": ((3, 32, 64), torch.float32),
        "words": ((3, longest, 50), torch.float32),
        "word_mask": ((3, longest), torch.bool),
        "durations": ((3,), torch.float64),
        "moments": ((3, 2), torch.float64),
        "indices": ((3,), torch.int64),
        "videos": ((3,), torch.int64),
    }
    found = {field.name: getattr(batch, field.name) for field in fields(Batch)}
    assert {name: (tuple(value.shape), value.dtype) for name, value in found.items()} == expected
    assert len(batch) == 3


def test_queries_of_a_video_have_its_number(dataset: MomentDataset) -> None:
    numbers = dataset.batch(range(len(dataset))).videos.tolist()
    names = [item.video for item in dataset.annotations]
    assert len(set(zip(names, numbers, strict=True))) == len(set(names)) == len(set(numbers)) < len(names)


@given(st.data())
def test_a_batch_is_its_queries_one_by_one(dataset: MomentDataset, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, len(dataset) - 1), min_size=1, max_size=8))
    batch = dataset.batch(indices)
    assert batch.indices.tolist() == indices
    for row, index in enumerate(indices):
        item = dataset.annotations[index]
        words = dataset.vocabulary.encode(item.query)
        assert torch.equal(batch.words[row, : len(words)], words)
        assert not batch.words[row, len(words) :].any()
        assert batch.word_mask[row].tolist() == [place < len(words) for place in range(batch.words.shape[1])]
        assert torch.equal(batch.visual[row], dataset.features.clips(item.video))
        assert (batch.durations[row].item(), batch.moments[row].tolist()) == (item.duration, [item.start, item.end])


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_indices_of_any_kind(dataset: MomentDataset, kind: type) -> None:
    assert dataset.batch(kind([2, 1])).indices.tolist() == [2, 1]


def test_a_video_asked_of_twice_is_read_once(dataset: MomentDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(dataset.features, "map", None)
    clips = dataset.features.clips
    monkeypatch.setattr(dataset.features, "clips", lambda video: read.append(video) or clips(video))
    same = [i for i, item in enumerate(dataset.annotations) if item.video == dataset.annotations[0].video]
    assert len(same) > 1
    dataset.batch(same)
    assert len(read) == 1


@pytest.mark.parametrize("indices", [[], [10_000]])
def test_indices_outside_are_refused(dataset: MomentDataset, indices: list[int]) -> None:
    with pytest.raises(IndexError):
        dataset.batch(indices)


def test_a_pickled_dataset_gives_the_same_batches(dataset: MomentDataset) -> None:
    copy = pickle.loads(pickle.dumps(dataset))
    for field in fields(Batch):
        assert torch.equal(getattr(copy.batch([5, 2]), field.name), getattr(dataset.batch([5, 2]), field.name))


def test_a_batch_moves_to_a_device(dataset: MomentDataset) -> None:
    moved = dataset.batch([0]).to("meta")
    assert all(getattr(moved, field.name).device.type == "meta" for field in fields(Batch))


def test_splits_share_vocabulary_and_features(planted_config: DataConfig) -> None:
    splits = load_splits(planted_config, ("train", "val", "test"))
    assert len({id(part.vocabulary) for part in splits.values()}) == 1
    assert len({id(part.features) for part in splits.values()}) == 1
    videos = [{item.video for item in part.annotations} for part in splits.values()]
    assert sum(map(len, videos)) == len(set.union(*videos)) == 60


def test_describe_is_json_and_names_what_is_skipped(small: Small) -> None:
    small.train[1] = "AAAA1 21.0 30.0##a person opens the door."
    small.train[0] = "AAAA0 1.0 3.0##a person unlocks the door."
    small.save()
    parts = load_splits(small.config(val_fraction=0.2), ("train", "val"))
    described = [json.loads(json.dumps(part.describe())) for part in parts.values()]
    assert sum(part["queries"] for part in described) == 5
    assert [entry["id"] for part in described for entry in part["skipped"]] == ["charades_sta_train.txt:2"]
    assert (described[0]["unknown_words"], described[0]["unknown_examples"]) == (1, ["unlocks"])


def test_missing_videos_are_named_at_load_time(small: Small) -> None:
    with h5py.File(small.root / "vgg_rgb_features.hdf5", "a") as file:
        for video in ("BBBB0", "BBBB1"):
            del file[video]
    load_split(small.config(val_fraction=0.2), "train")
    with pytest.raises(DataError, match=r"no features for 2 of 2 annotated videos \(BBBB0, BBBB1\)"):
        load_split(small.config(), "test")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"feature_size": 5}, "features of size 4 but data.feature_size=5; set data.feature_size=4"),
        ({"word_size": 4}, "size 3 but data.word_size=4"),
        ({"features": "mine.hdf5"}, "data.features=mine.hdf5: no such file"),
        ({"word_vectors": "mine.txt"}, "data.word_vectors=mine.txt: neither"),
        ({"dataset": "tacos"}, "test.json: no such file"),
    ],
)
def test_what_does_not_fit_is_named_at_load_time(small: Small, changes: dict[str, object], part: str) -> None:
    with pytest.raises(DataError) as error:
        load_split(small.config(**changes), "test")
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_without_any_feature_file_the_usual_names_are_told(small: Small) -> None:
    (small.root / "vgg_rgb_features.hdf5").rename(small.root / "charades_vgg_rgb.hdf5")
    assert len(load_split(small.config(), "test")) == 2
    (small.root / "charades_vgg_rgb.hdf5").rename(small.root / "elsewhere.hdf5")
    with pytest.raises(DataError, match=r"vgg_rgb_features\.hdf5 or charades_vgg_rgb\.hdf5.*set data\.features"):
        load_split(small.config(), "test")
    for name in ("elsewhere.hdf5", str(small.root / "elsewhere.hdf5")):
        assert len(load_split(small.config(features=name), "test")) == 2


def test_legacy_switches_reach_tokenizer_and_resampling(small: Small) -> None:
    plain = load_split(small.config(), "test").batch([0])
    legacy = load_split(small.config(tokenizer="legacy", resampling="legacy", frames=2), "test").batch([0])
    assert plain.words[0, -1].any()
    assert not legacy.words[0, -1].any()
    assert not torch.equal(legacy.visual, load_split(small.config(frames=2), "test").batch([0]).visual)
