"""A drawn dataset on disk: labelled, the same every time, gone on with after a kill, nothing else overwritten."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from cdn_tune.data.annotations import SPLITS
from cdn_tune.data.drawn import draw
from cdn_tune.data.drawn.draw import WORD_VECTORS
from cdn_tune.data.drawn.pictures import frames
from cdn_tune.data.drawn.scenes import FPS, draw_scene
from cdn_tune.data.fingerprint import PLANTED_MARKER, mark_of
from cdn_tune.data.jsonl import LAYOUT
from cdn_tune.data.mark import DRAWN
from cdn_tune.data.planted import plant
from cdn_tune.data.tokenizer import words
from cdn_tune.errors import ConfigError, DataError

av = pytest.importorskip("av")


def digests(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_it_is_a_dataset_of_json_lines_and_labelled(root: Path) -> None:
    assert mark_of(root / PLANTED_MARKER) == DRAWN
    marker = json.loads((root / PLANTED_MARKER).read_text())
    assert (marker["videos"], marker["dataset"], marker["word_vectors"]) == (12, "jsonl", WORD_VECTORS)
    assert all((root / name).is_file() for name in marker["files"])
    loaded = {split: LAYOUT.load(root, split) for split in SPLITS}
    assert not any(part.skipped for part in loaded.values())
    videos = [{item.video for item in part.annotations} for part in loaded.values()]
    assert [len(part) for part in videos] == [8, 2, 2]
    assert len(set().union(*videos)) == 12
    assert marker["queries"] == sum(len(part.annotations) for part in loaded.values())
    vectors = {line.split()[0]: line.split()[1:] for line in (root / WORD_VECTORS).read_text().splitlines()}
    assert {token for part in loaded.values() for item in part.annotations for token in words(item.query)} == set(
        vectors
    )
    assert {len(values) for values in vectors.values()} == {50}


def test_videos_are_as_long_as_their_annotations_say_and_show_their_frames(root: Path) -> None:
    items = [item for split in SPLITS for item in LAYOUT.load(root, split).annotations]
    durations = {item.video: item.duration for item in items}
    assert set(durations) == {path.stem for path in (root / "videos").iterdir()}
    for video, duration in list(durations.items())[:2]:
        found = decoded(root / "videos" / f"{video}.mp4")
        assert len(found) == duration * FPS
        wanted = list(frames(draw_scene(video, 0)))
        for shown, painted in zip(found[::25], wanted[::25], strict=True):
            assert np.abs(shown.astype(int) - painted.astype(int)).mean() < 4
    assert all(0 <= item.start < item.end <= item.duration for item in items)


def test_another_seed_gives_others(root: Path, tmp_path: Path) -> None:
    other = digests(draw(tmp_path / "other", 3, seed=1).root)
    assert all(other[name] != digests(root)[name] for name in ("train.jsonl", "videos/D0000.mp4", WORD_VECTORS))


def test_what_is_there_is_kept_and_what_is_missing_drawn(root: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(root, own)
    assert not draw(own, 12).written
    (own / "test.jsonl").unlink()
    (own / "videos" / "D0001.mp4").unlink()
    kept = (own / "videos" / "D0000.mp4").stat().st_mtime_ns
    assert draw(own, 12).written
    assert digests(own) == digests(root)
    assert (own / "videos" / "D0000.mp4").stat().st_mtime_ns == kept


def _killed(folder: Path) -> None:
    draw(folder, 3, progress=lambda done, _: os.kill(os.getpid(), signal.SIGKILL) if done == 2 else None)


def test_a_killed_call_leaves_its_label_and_is_gone_on_with_to_the_same_bytes(root: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(own,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert mark_of(own / PLANTED_MARKER) == DRAWN
    assert not list(own.glob("*.jsonl"))
    assert draw(own, 3).written
    found, whole = digests(own), digests(root)
    assert [name for name in found if name.endswith(".mp4")] == [f"videos/D000{number}.mp4" for number in range(3)]
    assert all(found[name] == whole[name] for name in found if name.endswith(".mp4"))
    own_lines = {line for split in SPLITS for line in (own / f"{split}.jsonl").read_text().splitlines()}
    assert own_lines < {line for split in SPLITS for line in (root / f"{split}.jsonl").read_text().splitlines()}


def test_nothing_else_is_overwritten(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds other planted data or drawn videos"):
        draw(root, 6)
    (tmp_path / "own" / "videos").mkdir(parents=True)
    (tmp_path / "own" / "videos" / "D0000.mp4").write_text("mine")
    with pytest.raises(DataError, match="is not empty and holds no drawn videos"):
        draw(tmp_path / "own", 3)
    assert [path.name for path in (tmp_path / "own").rglob("*")] == ["videos", "D0000.mp4"]
    planted = plant(tmp_path / "planted", videos=3, feature_size=4).root
    with pytest.raises(DataError, match="holds other planted data"):
        draw(planted, 3)
    with pytest.raises(DataError, match="choose another folder or overwrite"):
        plant(root, videos=3)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        draw(tmp_path / "file", 3)


@pytest.mark.parametrize(
    ("options", "fault"), [({"videos": 2}, "videos=2: must be"), ({"seed": -1}, "seed=-1: must be")]
)
def test_options_are_checked(options: dict[str, int], fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=fault):
        draw(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_without_pyav_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"pip install 'cdn-tune\[video\]'"):
        draw(tmp_path / "out", 3)


def test_a_folder_may_have_a_colon(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(Path("dr:1/x"), 3)
    assert digests(tmp_path / "dr:1" / "x")["videos/D0000.mp4"] == digests(root)["videos/D0000.mp4"]
