from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cdn_tune.data.clips import to_fixed_length
from cdn_tune.data.features import FeatureStore
from cdn_tune.errors import DataError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "features of mine.hdf5"
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["good"] = random.standard_normal((9, 4), dtype=np.float32)
        file["other"] = random.standard_normal((3, 4), dtype=np.float32)
        file["one row"] = random.standard_normal((1, 4), dtype=np.float32)
        file.create_dataset("packed", data=file["good"][:], compression="gzip", chunks=(2, 2))
        file["half"] = file["good"][:].astype(np.float16)
        file["no rows"] = np.zeros((0, 4), np.float32)
        file["flat"] = np.zeros(4, np.float32)
        file["wide"] = np.zeros((3, 5), np.float32)
        file["text"] = "abc"
        file["words"] = np.array([[b"a", b"b"]])
        file["nan"] = np.where(np.arange(12).reshape(3, 4) == 6, np.nan, 1).astype(np.float32)
        file["huge"] = np.full((2, 4), 1e300)
        file.create_group("group")["inner"] = np.zeros((3, 4), np.float32)
    return path


@pytest.mark.parametrize("video", ["good", "one row", "packed", "half"])
def test_clips_are_the_resampled_frames(path: Path, video: str) -> None:
    with h5py.File(path) as file:
        expected = to_fixed_length(file[video][:].astype(np.float32), 8)
    assert torch.equal(FeatureStore(path, 8, 4).clips(video), expected)


def test_legacy_resampling_is_passed_on(path: Path) -> None:
    assert not torch.equal(FeatureStore(path, 4, 4).clips("good"), FeatureStore(path, 4, 4, legacy=True).clips("good"))


@pytest.mark.parametrize(
    ("video", "parts"),
    [
        ("absent", ("has no features",)),
        ("no rows", ("has 0 frames",)),
        ("flat", ("shape [4]", "[frames, 4]")),
        ("wide", ("size 5", "data.feature_size=4", "set data.feature_size=5")),
        ("text", ("holds object values",)),
        ("words", ("values; expected floats",)),
        ("nan", ("nan in row 1, column 2",)),
        ("huge", ("inf in row 0",)),
        ("group", ("HDF5 group", "expected a dataset")),
    ],
)
def test_unusable_features_are_named(path: Path, video: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as error:
        FeatureStore(path, 8, 4).clips(video)
    message = str(error.value)
    assert all(part in message for part in (str(path), repr(video), *parts)), message
    assert "\n" not in message


def test_missing_videos_are_counted_and_three_named(path: Path) -> None:
    store = FeatureStore(path, 8, 4)
    store.require(["good", "other", "good"])
    with pytest.raises(DataError, match=r"no features for 4 of 5 annotated videos \(a, b, c, \.\.\.\)"):
        store.require(["good", "a", "b", "c", "d"])


def test_the_first_video_is_read_when_required(path: Path) -> None:
    with pytest.raises(DataError, match="size 5 but"):
        FeatureStore(path, 8, 4).require(["wide", "good"])


@pytest.mark.parametrize("fault", ["missing", "empty", "text", "truncated"])
def test_a_file_that_is_no_hdf5_is_named(path: Path, fault: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if fault != "missing":
        path.write_bytes({"empty": b"", "text": b"no hdf5" * 99, "truncated": content[: len(content) // 2]}[fault])
    with pytest.raises(DataError, match=r"features of mine\.hdf5: .*;") as error:
        FeatureStore(path, 8, 4).clips("good")
    assert "\n" not in str(error.value)


def test_memory_is_bounded_and_the_least_recently_used_goes_first(path: Path) -> None:
    store = FeatureStore(path, 8, 4, memory_bytes=2 * 8 * 4 * 4)
    first = store.clips("good")
    store.clips("other")
    assert store.clips("good") is first
    store.clips("half")
    assert store.clips("good") is first
    store.clips("one row")
    store.clips("other")
    again = store.clips("good")
    assert again is not first
    assert torch.equal(again, first)


def test_a_limit_below_one_video_still_serves(path: Path) -> None:
    store = FeatureStore(path, 8, 4, memory_bytes=1)
    assert torch.equal(store.clips("good"), store.clips("good"))


def test_a_pickled_store_opens_the_file_itself(path: Path) -> None:
    store = FeatureStore(path, 8, 4)
    clips = store.clips("good")
    content = pickle.dumps(store)
    assert len(content) < 1000
    assert torch.equal(pickle.loads(content).clips("good"), clips)


def test_a_forked_process_opens_the_file_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(path, 8, 4)
    clips = store.clips("good")
    parents = store._file
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert torch.equal(store.clips("good"), clips)
    assert store._file is not parents


def test_a_closed_store_opens_again(path: Path) -> None:
    store = FeatureStore(path, 8, 4)
    store.clips("good")
    store.close()
    assert store.frames("other").shape == (3, 4)


def test_threads_share_a_store(path: Path) -> None:
    store = FeatureStore(path, 8, 4, memory_bytes=1)
    expected = {video: store.clips(video) for video in ("good", "other", "half")}
    wrong: list[str] = []

    def read(video: str) -> None:
        for _ in range(50):
            if not torch.equal(store.clips(video), expected[video]):
                wrong.append(video)

    threads = [threading.Thread(target=read, args=(video,)) for video in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_ten_hour_video_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.hdf5"
    frames = np.random.default_rng(0).standard_normal((36_000, 4), dtype=np.float32)
    with h5py.File(path, "w") as file:
        file["long"] = frames
    monkeypatch.setattr("cdn_tune.data.features.BLOCK_BYTES", 4 * 4 * 1000)
    store, blocks = FeatureStore(path, 64, 4), []
    read = store._read
    monkeypatch.setattr(
        store, "_read", lambda video, first, last: blocks.append(last - first) or read(video, first, last)
    )
    store.prepare(["long"])
    assert torch.equal(store.clips("long"), to_fixed_length(frames, 64))
    assert max(blocks) <= 1000
    assert store.check("long").frames == 36_000


def test_a_group_per_video_is_read_by_its_member(path: Path) -> None:
    with h5py.File(path) as file:
        expected = to_fixed_length(file["group/inner"][:], 8)
    assert torch.equal(FeatureStore(path, 8, 4, member="inner").clips("group"), expected)
    with pytest.raises(DataError, match="is an HDF5 group"):
        FeatureStore(path, 8, 4, member="c3d_features").clips("group")
