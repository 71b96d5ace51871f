"""Clips: the moment and nothing else, upright, with its sound; files of others stay."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from cdn_tune.data.videos.clip import clip_folder, clip_name, cut_clip
from cdn_tune.data.videos.decode import VideoFile
from cdn_tune.errors import DataError
from tests.data.videos.clips import write_video

av = pytest.importorskip("av")

RATE = 10  # frames a second of the videos here
STEP = 12  # in grey, from one frame to the next


def write(path: Path, beep: float | None = None) -> Path:
    """Writes a video of two seconds, from black to white; with sound if `beep` is given, silent until then."""
    rate = 44_100
    wave = np.sin(np.arange(2 * rate) * 0.1).astype(np.float32)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=RATE)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        sound = None if beep is None else container.add_stream("aac", rate=rate, layout="mono")
        for at in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), STEP * at, np.uint8), "rgb24")
            frame.pts, frame.time_base = at, Fraction(1, RATE)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        if sound is not None:
            wave[: round((beep or 0) * rate)] = 0
            heard = av.AudioFrame.from_ndarray(wave[None], "fltp", "mono")
            heard.sample_rate, heard.pts, heard.time_base = rate, 0, Fraction(1, rate)
            container.mux(sound.encode(heard))
            container.mux(sound.encode(None))
    return path


def cut(video: Path, start: float, end: float, clip: Path) -> Path:
    with VideoFile(video) as opened:
        cut_clip(opened, start, end, clip, "a query")
    return clip


def numbers(clip: Path) -> list[int]:
    """The numbers of the frames of a clip of what `write` wrote."""
    with av.open(str(clip)) as container:
        return [round(float(frame.to_ndarray(format="rgb24").mean()) / STEP) for frame in container.decode(video=0)]


def test_a_clip_holds_the_frames_of_its_moment(tmp_path: Path) -> None:
    clip = cut(write(tmp_path / "video.mp4"), 0.5, 1.5, tmp_path / "clip.mp4")
    assert numbers(clip) == [*range(5, 15)]
    with VideoFile(clip) as found:
        assert found.duration == pytest.approx(1.0, abs=0.01)


def test_frames_at_irregular_times_are_shown_when_the_video_shows_them(tmp_path: Path) -> None:
    video = write_video(tmp_path / "video.mp4", [0, 0.1, 0.2, 1.0, 1.1, 2.0, 2.1, 2.2])
    clip = cut(video, 0.2, 2.1, tmp_path / "clip.mp4")
    with VideoFile(video) as whole, VideoFile(clip) as part:
        times = np.arange(round(1.9 * float(part.rate))) / float(part.rate)  # of the clip's frames
        shown = [pixels.mean() for pixels in part.frames([*(times + 0.001)])]
        assert shown == pytest.approx([pixels.mean() for pixels in whole.frames([*(times + 0.2)])], abs=3)
        assert part.duration == pytest.approx(1.9, abs=float(1 / part.rate))


def test_a_turned_video_is_cut_upright(tmp_path: Path) -> None:
    clip = cut(
        write_video(tmp_path / "video.mp4", [at / RATE for at in range(20)], rotation=90), 0, 1, tmp_path / "clip.mp4"
    )
    with VideoFile(tmp_path / "video.mp4") as turned, VideoFile(clip) as found:
        assert (found.width, found.height) == (turned.width, turned.height) == (48, 64)
        (wanted,), (pixels,) = turned.frames([0.3]), found.frames([0.3])
        assert np.abs(wanted.astype(int) - pixels.astype(int)).mean() < 8
    with av.open(str(clip)) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_odd_sides_lose_a_line(tmp_path: Path) -> None:
    clip = cut(
        write_video(tmp_path / "video.avi", [at / RATE for at in range(20)], width=65, height=49),
        0,
        1,
        tmp_path / "clip.mp4",
    )
    with VideoFile(clip) as found:
        assert (found.width, found.height) == (64, 48)


def test_sound_is_cut_with_the_pictures(tmp_path: Path) -> None:
    clip = cut(write(tmp_path / "video.mkv", beep=1.2), 0.7, 1.8, tmp_path / "clip.mp4")
    with av.open(str(clip)) as container:
        frames = [*container.decode(audio=0)]
        sound = np.concatenate([frame.to_ndarray()[0] for frame in frames])
        begins = frames[0].time + np.flatnonzero(np.abs(sound) > 0.2)[0] / frames[0].sample_rate
        ends = frames[-1].time + frames[-1].samples / frames[-1].sample_rate
    assert begins == pytest.approx(0.5, abs=0.01)
    assert ends == pytest.approx(1.1, abs=0.03)


@pytest.mark.parametrize(("start", "end", "wanted"), [(0.5, 0.5, [5]), (1.8, 9.0, [18, 19]), (-1.0, 0.2, [0, 1])])
def test_moments_of_no_length_and_beyond_the_video(tmp_path: Path, start: float, end: float, wanted: list[int]) -> None:
    video = write(tmp_path / "video.mp4")
    assert numbers(cut(video, start, end, tmp_path / "clip.mp4")) == wanted


def test_what_others_wrote_stays_and_an_own_clip_is_replaced(tmp_path: Path) -> None:
    video = write(tmp_path / "video.mp4")
    clip = cut(video, 0, 1, tmp_path / "clip.mp4")
    assert numbers(cut(video, 1, 1.3, clip)) == [10, 11, 12]
    for other in (video, tmp_path / "text.mp4"):
        if other != video:
            other.write_text("not yours")
        before = other.read_bytes()
        with VideoFile(clip) as opened, pytest.raises(DataError, match="exists and was not cut by cdn-tune"):
            cut_clip(opened, 0, 0.1, other, "a query")
        assert other.read_bytes() == before
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="exists and was not cut"):
        cut(video, 0, 1, tmp_path / "link.mp4")


def test_a_broken_video_leaves_no_part_of_a_clip(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", [at / RATE for at in range(100)], fast_start=True).read_bytes()
    video = tmp_path / "video.mp4"
    video.write_bytes(whole[: len(whole) // 2])
    folder = clip_folder(tmp_path / "clips")
    with pytest.raises(DataError, match="breaks off after"):
        cut(video, 8, 9, folder / "clip.mp4")
    assert not [*folder.iterdir()]


def test_a_clip_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    video = write(tmp_path / "video.mp4")
    with pytest.raises(DataError, match=r"clip\.mp4: cannot be written \(.+\); choose another --cut folder"):
        cut(video, 0, 1, tmp_path / "gone" / "clip.mp4")


def test_folders(tmp_path: Path) -> None:
    assert clip_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    for folder, why in ((tmp_path / "file", "is a file"), (tmp_path / "file" / "in", "cannot be created")):
        with pytest.raises(DataError, match=why):
            clip_folder(folder)


def test_names() -> None:
    assert clip_name("P0001", 12.34, 18.86, 1) == "P0001-1-12.3s-18.9s.mp4"
    assert clip_name("Küche 日本", 0, 1, 3, query=2) == "Küche 日本-q2-3-0.0s-1.0s.mp4"
    assert clip_name("../a/b\n\x1b[31m", 0, 1, 1) == "_a_b__[31m-1-0.0s-1.0s.mp4"
    long = clip_name("日" * 300, 0, 1, 1)
    assert long.startswith("日日")
    assert len(long.encode()) < 200
