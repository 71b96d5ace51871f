"""The videos of a report: found by name, a few frames each, and one line for what is wrong."""

from __future__ import annotations

import base64
import importlib.util
import io
import math
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pytest
from PIL import Image

from cdn_tune.errors import DataError
from cdn_tune.report import footage
from cdn_tune.report.footage import FRAMES, collect_footage
from tests.data.videos.clips import write_fade

pytest.importorskip("av")
MakeClip = Callable[..., Path]


def pixels(frames: footage.Frames) -> np.ndarray:
    data = base64.b64decode(frames.picture.removeprefix("data:image/jpeg;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_frames_are_those_of_their_times(tmp_path: Path) -> None:
    write_fade(tmp_path / "in" / "a.mp4", 24.0)
    found = collect_footage(tmp_path, {"a": 24.0}, ["a"], 60.0)
    assert found.notices == ()
    frames = found.frames["a"]
    strip = pixels(frames)
    assert strip.shape == (frames.height, FRAMES * frames.width, 3)
    means = strip.reshape(frames.height, FRAMES, frames.width, 3).mean(axis=(0, 2, 3))
    assert means == pytest.approx([255 * (part + 0.5) / FRAMES for part in range(FRAMES)], abs=8)  # it fades in


def test_links_lead_from_the_page_to_the_video(tmp_path: Path) -> None:
    name = 'a b"<#?%> é'
    file = write_fade(tmp_path / "videos" / f"{name}.mp4", 2.0)
    found = collect_footage(tmp_path / "videos", {name: 2.0}, [], 60.0)
    page = tmp_path / "runs" / "one" / "report" / "index.html"
    (link,) = found.links(page.parent).values()
    assert not set(link) & set('"<>#?')
    assert Path(unquote(urlsplit(urljoin(page.as_uri(), link)).path)) == file


def test_names_may_differ_in_case_and_suffix(tmp_path: Path) -> None:
    write_fade(tmp_path / "S13-D21.mp4", 2.0)
    found = collect_footage(tmp_path, {"s13-d21.avi": 2.0}, [], 60.0)
    assert list(found.paths) == ["s13-d21.avi"]


def test_of_one_name_the_file_that_browsers_play(tmp_path: Path) -> None:
    for suffix in (".avi", ".webm", ".wmv"):
        (tmp_path / f"a{suffix}").write_bytes(b"")
    assert collect_footage(tmp_path, {"a": 2.0}, [], 60.0).paths == {"a": tmp_path / "a.webm"}


def test_what_cannot_be_shown_is_told_in_few_lines(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"bad{number}.mp4").write_bytes(b"not a video" * 99)
    write_fade(tmp_path / "long.mp4", 8.0)
    names = {f"bad{number}": 9.0 for number in range(9)} | {f"gone{number}": 9.0 for number in range(5)} | {"long": 2.0}
    found = collect_footage(tmp_path, names, list(names), 60.0)
    assert list(found.frames) == ["long"]
    assert len(found.paths) == 10  # a browser may play what is not decoded here
    missing, *faults, further, apart = found.notices
    assert missing.startswith("5 of 15 videos are not in ")
    assert "gone0, gone1, gone2, and 2 more" in missing
    assert [f"bad{number}.mp4" in fault for number, fault in enumerate(faults)] == [True] * 5
    assert "4 further videos" in further
    assert "long (8.0 s, annotated 2.0 s)" in apart
    assert all("\n" not in notice for notice in found.notices)


def test_frames_are_few_and_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"v{number}": 2.0 for number in range(4)}
    for name in names:
        write_fade(tmp_path / f"{name}.mp4", 2.0)
    monkeypatch.setattr(footage, "VIDEOS", 3)
    found = collect_footage(tmp_path, names, ["v3", "v1", "v3", "v0", "v2"], 60.0)
    assert list(found.frames) == ["v3", "v1", "v0"]
    one = len(found.frames["v3"].picture)
    monkeypatch.setattr(footage, "BYTES", math.ceil(1.5 * one))
    found = collect_footage(tmp_path, names, ["v3", "v1", "v0"], 60.0)
    assert len(found.frames) == 1
    assert "frames of 2 of 3 videos are left out" in found.notices[0]
    assert collect_footage(tmp_path, names, ["v3"], -1.0).frames == {}
    assert len(found.paths) == 4


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no videos"):
        collect_footage(tmp_path, {"a": 1.0}, ["a"], 60.0)


def test_without_a_decoder_videos_are_played_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fade(tmp_path / "a.mp4", 2.0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    found = collect_footage(tmp_path, {"a": 2.0}, ["a"], 60.0)
    assert list(found.paths) == ["a"]
    assert [notice for notice in found.notices if "pip install 'cdn-tune[video]'" in notice] == list(found.notices)
