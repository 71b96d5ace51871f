from __future__ import annotations

import errno
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from cdn_tune.data import clip_cache
from cdn_tune.data.cache import DEFAULT_LIMIT, Hold, cache_limit, evict, make_room, size_of
from cdn_tune.data.clip_map import CLIPS
from cdn_tune.data.dataset import load_split, load_splits
from cdn_tune.data.features import FeatureStore
from cdn_tune.errors import DataError

from .conftest import Small

VIDEOS = [f"V{n}" for n in range(6)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "the cache"
    monkeypatch.setenv("CDN_TUNE_CACHE", str(folder))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "features.hdf5"
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number, video in enumerate(VIDEOS):
            file[video] = random.standard_normal((number + 1, 4), dtype=np.float32)
    return path


class Built:
    """Counts what is built."""

    def __init__(self) -> None:
        self.videos = 0

    def __call__(self, done: int, total: int) -> None:
        self.videos += 1
        assert self.videos == done <= total


def prepared(source: Path, videos: list[str] = VIDEOS, length: int = 8, dtype: str = "float32", **more: Any) -> Any:
    """A prepared store, and how many videos were built for it."""
    store, built = FeatureStore(source, length, 4, **more), Built()
    store.prepare(videos, dtype, built)
    return store, built.videos


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "clips").iterdir() if path.is_dir())


def left(cache: Path) -> list[str]:
    """What lies in the cache and is no whole part."""
    return [path.name for entry in entries(cache) for path in entry.iterdir() if path.name.startswith(".building")]


@pytest.mark.parametrize("legacy", [False, True])
def test_cached_clips_are_those_computed_without(source: Path, legacy: bool) -> None:
    plain = FeatureStore(source, 8, 4, legacy)
    store, built = prepared(source, legacy=legacy)
    assert built == 6
    places = ["V3", "V0", "V3"]
    expected = torch.stack([plain.clips(video) for video in places])
    assert torch.equal(store.gather(places, store.rows(places)), expected)
    assert torch.equal(store.clips("V3"), expected[0])


def test_half_precision_halves_the_cache_and_rounds(source: Path, cache: Path) -> None:
    whole, _ = prepared(source)
    half, built = prepared(source, dtype="float16")
    sizes = sorted(path.stat().st_size for path in (cache / "clips").glob(f"*/*/{CLIPS}"))
    assert (built, sizes) == (6, [6 * 8 * 4 * 2, 6 * 8 * 4 * 4])
    assert half.clips("V4").dtype == torch.float32
    assert torch.allclose(half.clips("V4"), whole.clips("V4"), rtol=2**-10, atol=1e-7)


def test_clips_are_built_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepared(source)[1] == 6
    monkeypatch.setattr(FeatureStore, "_compute", lambda *_: pytest.fail("read again"))
    store, built = prepared(source)
    assert built == 0
    assert store.gather(VIDEOS, store.rows(VIDEOS)).shape == (6, 8, 4)


def test_only_missing_videos_are_added(source: Path) -> None:
    assert prepared(source, VIDEOS[:2])[1] == 2
    assert prepared(source, VIDEOS[1:4])[1] == 2
    store, built = prepared(source)
    assert built == 2
    plain = FeatureStore(source, 8, 4)
    order = ["V5", "V0", "V3", "V1", "V0"]
    assert torch.equal(store.gather(order, store.rows(order)), torch.stack([plain.clips(video) for video in order]))


@pytest.mark.parametrize("change", [{"length": 4}, {"dtype": "float16"}, {"legacy": True}])
def test_whatever_changes_clips_has_an_entry_of_its_own(source: Path, cache: Path, change: dict[str, Any]) -> None:
    prepared(source)
    assert prepared(source, **change)[1] == 6
    assert len(entries(cache)) == 2


def test_a_changed_source_is_noticed(source: Path) -> None:
    prepared(source)
    with h5py.File(source, "a") as file:
        file["V2"][1] = 0
    store, built = prepared(source)
    assert built == 6
    assert torch.equal(store.clips("V2"), FeatureStore(source, 8, 4).clips("V2"))


def test_a_moved_source_is_the_same(source: Path) -> None:
    prepared(source)
    assert prepared(source.rename(source.with_name("elsewhere.hdf5")))[1] == 0


def test_nothing_is_written_beside_the_source(source: Path) -> None:
    before = sorted(source.parent.iterdir())
    prepared(source)
    assert sorted(set(source.parent.iterdir()) - {source.parent / "the cache"}) == before


def test_trials_share_and_evaluation_adds_the_test_split(small: Small, cache: Path) -> None:
    config = small.config(val_fraction=0.3)
    counts = []
    for splits in (("train", "val"), ("train", "val"), ("train", "test"), ("train", "val", "test")):
        built = Built()
        load_splits(config, splits, built)  # type: ignore[arg-type]
        counts.append(built.videos)
    assert counts == [6, 0, 2, 0]
    assert len(entries(cache)) == 1


def test_a_pickled_dataset_maps_the_same_files(small: Small) -> None:
    dataset = load_split(small.config(), "test")
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.features.map is not None
    assert torch.equal(copy.batch([1, 0, 1]).visual, dataset.batch([1, 0, 1]).visual)


def test_where_the_cache_is_not_a_pickled_dataset_reads_the_source(small: Small, cache: Path) -> None:
    dataset = load_split(small.config(), "test")
    content, expected = pickle.dumps(dataset), dataset.batch([1, 0, 1]).visual
    cache.rename(cache.with_name("gone"))
    copy = pickle.loads(content)
    assert copy.features.map is None
    assert torch.equal(copy.batch([1, 0, 1]).visual, expected)


# Going on without.


def assert_works_without(source: Path, caplog: pytest.LogCaptureFixture, part: str) -> None:
    with caplog.at_level(logging.WARNING):
        store, _ = prepared(source)
    assert store.map is None
    (message,) = caplog.messages
    assert part in message
    assert "Going on without" in message
    assert torch.equal(store.gather(["V1", "V1"], store.rows(["V1", "V1"]))[1], FeatureStore(source, 8, 4).clips("V1"))


def test_an_unwritable_cache(source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CDN_TUNE_CACHE", str(source))
    assert_works_without(source, caplog, "set CDN_TUNE_CACHE to a writable folder")


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_disk_that_fills_up(
    source: Path, cache: Path, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, calls = getattr(os, call), []

    def full(*args: Any) -> Any:
        calls.append(args)
        if len(calls) >= (3 if call == "pwrite" else 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    monkeypatch.setattr(os, call, full)
    assert_works_without(source, caplog, "No space left on device")
    assert left(cache) == []
    monkeypatch.setattr(os, call, real)
    assert prepared(source)[1] == 6


def test_a_cache_too_small(source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CDN_TUNE_CACHE_LIMIT", "700")
    assert_works_without(source, caplog, "raise CDN_TUNE_CACHE_LIMIT")


def test_a_cache_that_can_only_be_read(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(source)
    real = os.open

    def read_only(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", read_only)
    store, built = prepared(source)
    assert (store.map is not None, built) == (True, 0)


@pytest.mark.parametrize("fault", ["clips", "json", "lost"])
def test_a_damaged_part_is_built_again(source: Path, cache: Path, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    prepared(source)
    (part,) = (cache / "clips").glob("*/part-*")
    if fault == "clips":
        os.truncate(part / CLIPS, 100)
    elif fault == "json":
        (part / "part.json").write_text('{"videos": ')
    else:
        (part / "part.json").unlink()
    store, built = prepared(source)
    assert built == 6
    assert "damaged part" in caplog.text
    assert torch.equal(store.clips("V5"), FeatureStore(source, 8, 4).clips("V5"))


def test_a_video_that_cannot_be_used_is_named_and_leaves_nothing(source: Path, cache: Path) -> None:
    with h5py.File(source, "a") as file:
        file["V4"][2, 1] = np.nan
    with pytest.raises(DataError, match="video 'V4' has the value nan in row 2, column 1"):
        prepared(source)
    assert [path.name for entry in entries(cache) for path in entry.glob("*part*")] == left(cache) == []


# Several processes.

BUILD = """
import os, sys, time
from pathlib import Path
from cdn_tune.data.features import FeatureStore
store, built = FeatureStore(Path(sys.argv[1]), 8, 4), []
compute = store._compute
def slow(video):
    os.write(1, b"reading\\n")
    time.sleep(float(sys.argv[2]))
    return compute(video)
store._compute = slow
store.prepare([f"V{n}" for n in range(6)])
print("sum", float(store.map.gather(store.map.rows([f"V{n}" for n in range(6)])).sum()))
"""


def builder(source: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(source), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_several_processes_one_builds_and_the_others_wait(source: Path) -> None:
    processes = [builder(source, 0.2) for _ in range(3)]
    printed = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert sorted(lines.count("reading") for lines in printed) == [0, 0, 6]
    assert len({lines[-1] for lines in printed}) == 1


def test_a_killed_builder_leaves_nothing_broken(source: Path, cache: Path) -> None:
    process = builder(source, 30)
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(left(cache)) == 1
    start = time.monotonic()
    store, built = prepared(source)
    assert time.monotonic() - start < 10
    assert (built, left(cache)) == (6, [])
    assert torch.equal(store.clips("V5"), FeatureStore(source, 8, 4).clips("V5"))


# Size.


def test_an_entry_that_is_held_to_the_interpreters_end_is_released_without_a_word(tmp_path: Path) -> None:
    """By a module that is taken apart after the cache's own, as those that were imported earlier are."""
    code = """
import pathlib, sys, types
earlier = sys.modules["earlier"] = types.ModuleType("earlier")
from cdn_tune.data import cache
earlier.held = cache.Hold(pathlib.Path(sys.argv[1]))
sys.kept = [earlier, cache]
"""
    command = [sys.executable, "-c", code, str(tmp_path / "entry")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_least_recently_used_goes_unless_it_is_in_use(tmp_path: Path) -> None:
    root = tmp_path / "clips"
    for age, name in enumerate(("new", "middle", "old", "held")):
        hold = Hold(root / name)
        (root / name / "data").write_bytes(bytes(100))
        os.utime(root / name / "in-use", (1000 - age, 1000 - age))
        hold.release()
    held = Hold(root / "held")
    os.utime(root / "held" / "in-use", (1, 1))
    assert make_room(root, 150, 450)
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["held", "middle", "new"]
    assert not make_room(root, 350, 400)
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["held"]
    assert size_of(root / "held") == 100
    held.release()
    assert evict(root / "held")
    assert not make_room(root, 401, 400)


def test_entries_in_use_survive_a_full_cache(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDN_TUNE_CACHE_LIMIT", "2K")
    first, _ = prepared(source)
    assert prepared(source, length=16)[0].map is None
    expected = first.clips("V2")
    del first
    second, _ = prepared(source, length=12)
    assert second.map is not None
    assert len(list((cache / "clips").glob("*/part-*"))) == 1
    assert torch.equal(prepared(source)[0].clips("V2"), expected)


def test_using_an_entry_makes_it_recent(source: Path, cache: Path) -> None:
    prepared(source)
    (entry,) = entries(cache)
    os.utime(entry / "in-use", (1, 1))
    prepared(source)
    assert (entry / "in-use").stat().st_mtime > 1


@pytest.mark.parametrize(
    ("text", "size"), [("", DEFAULT_LIMIT), ("123", 123), ("1.5k", 1536), ("64G", 64 << 30), ("2 TiB", 2 << 40)]
)
def test_limits(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDN_TUNE_CACHE_LIMIT", text)
    assert cache_limit() == size


@pytest.mark.parametrize("text", ["much", "-1", "1X"])
def test_a_wrong_limit_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDN_TUNE_CACHE_LIMIT", text)
    with pytest.raises(DataError, match=f"CDN_TUNE_CACHE_LIMIT={text}: not a size"):
        cache_limit()


def test_the_version_is_part_of_the_key(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clip_cache.ClipKey("s", 1, 2, "all", "float32", version=1).name != (
        clip_cache.ClipKey("s", 1, 2, "all", "float32", version=2).name
    )
