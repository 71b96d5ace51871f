"""Decoding: the frame shown at a time, upright; what is no usable video ends in one line."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdn_tune.data.videos.decode import VideoFile, find_videos
from cdn_tune.errors import DataError
from tests.data.videos.clips import number_of, sample, write_video

TIMES = [i / 10 for i in range(20)]


def shown(path: Path, times: list[float]) -> list[int]:
    """Returns the numbers of the frames at some times."""
    with VideoFile(path) as video:
        return [number_of(pixels) for pixels in video.frames(times)]


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "c.webm"])
def test_the_frame_at_a_time_is_the_last_that_began_by_it(tmp_path: Path, name: str) -> None:
    codec = "libvpx-vp9" if name.endswith("webm") else "mpeg4"
    video = write_video(tmp_path / name, [0.0, 0.1, 1.0, 1.1, 3.0], codec=codec)
    assert shown(video, [0.0, 0.05, 0.5, 0.99, 1.0, 1.05, 2.9, 3.0]) == [0, 0, 1, 1, 2, 2, 3, 4]


def test_frames_far_apart_are_sought_and_are_the_same(tmp_path: Path) -> None:
    times = [float(i) for i in range(80)]
    video = write_video(tmp_path / "long.mp4", times, key_every=7)
    assert shown(video, [0.0, 60.5, 61.5, 79.0]) == [i % 24 for i in (0, 60, 61, 79)]
    assert shown(video, times) == [i % 24 for i in range(80)]
    stream = write_video(tmp_path / "stream.ts", times, codec="libx264")
    assert shown(stream, [0.0, 70.5]) == [0, 70 % 24]


def test_frames_far_apart_with_one_key_frame_are_not_decoded_again_and_again(tmp_path: Path) -> None:
    class Counting(VideoFile):
        """Counts decoded frames."""

        decoded = 0

        def _decoded(self, exact: bool = False) -> Iterator[tuple[float, Any]]:
            for each in super()._decoded(exact):
                self.decoded += 1
                yield each

    times = [float(i) for i in range(0, 400, 2)]
    video = write_video(tmp_path / "long.mp4", times, key_every=1000)
    with Counting(video) as opened:
        found = [number_of(pixels) for pixels in opened.frames([0.0, 40.0, 120.0, 200.0, 280.0, 360.0])]
    assert found == [i % 24 for i in (0, 20, 60, 100, 140, 180)]
    assert opened.decoded < 1.2 * len(times)


@pytest.mark.parametrize(
    ("rotation", "corner"), [(0, (2, 2)), (90, (-3, 2)), (180, (-3, -3)), (-90, (2, -3))]
)  # counterclockwise; -90 is how phones store upright videos
def test_frames_are_upright(tmp_path: Path, rotation: int, corner: tuple[int, int]) -> None:
    path = write_video(tmp_path / "a.mp4", TIMES, rotation=rotation)
    if rotation == -90:  # as FFmpeg reads a phone's matrix 0 1 / -1 0: clockwise
        assert (0).to_bytes(4, "big") + (1 << 16).to_bytes(4, "big") in path.read_bytes()
    with VideoFile(path) as video:
        pixels = next(video.frames([0.0]))
        small = next(video.frames([0.0], size=24))
    assert pixels.shape == (video.height, video.width, 3) == ((64, 48, 3) if rotation % 180 else (48, 64, 3))
    white = {place for place in [(2, 2), (2, -3), (-3, 2), (-3, -3)] if pixels[place].mean() > 128}
    assert white == {corner}
    assert sorted(small.shape) == [3, 24, 32]


@pytest.mark.parametrize(
    ("pixel", "rotation", "shape"),
    [("2", 0, (48, 128)), ("2", 90, (128, 48)), ("16/15", 0, (48, 68)), ("1/2", 0, (48, 32)), ("40", 0, (48, 64))],
)
def test_frames_are_as_wide_as_a_player_shows_them(
    tmp_path: Path, pixel: str, rotation: int, shape: tuple[int, int]
) -> None:
    path = write_video(tmp_path / "a.mp4", TIMES, rotation=rotation, pixel=Fraction(pixel))
    with VideoFile(path) as video:
        assert (video.height, video.width) == next(video.frames([0.0])).shape[:2] == shape
        small = next(video.frames([0.0], size=24)).shape[:2]
    assert small == tuple(round(length * 24 / min(shape)) for length in shape)


def test_real_videos_and_sound(tmp_path: Path) -> None:
    with VideoFile(sample("bigbuckbunny.mp4")) as video:  # it has sound
        assert (video.width, video.height, round(video.duration, 1)) == (1280, 720, 5.3)
        frames = list(video.frames([0.0, 5.3], size=64))
    assert [frame.shape for frame in frames] == [(64, 114, 3)] * 2
    assert not np.array_equal(*frames)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_video_that_is_cut_off_is_no_shorter_video(tmp_path: Path, share: float) -> None:
    whole = write_video(tmp_path / "a.mp4", [i / 10 for i in range(100)], fast_start=True).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"cut.mp4: breaks off after \d.\d s of 9.9 s; copy it again"):
        shown(tmp_path / "cut.mp4", [1.0, 5.0, 9.5])


def write_sound(path: Path) -> Path:
    """Writes a file with sound alone."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sound.m4a", "has no video stream"),
        ("still.mp4", "holds a single frame, as a still image does"),
        ("text.mp4", "cannot be opened as a video"),
        ("empty.mp4", "cannot be opened as a video"),
        ("cut.mp4", "cannot be opened as a video"),
        ("list.m3u8", "cannot be opened as a video"),
        ("list.ffconcat", "cannot be opened as a video"),
        ("list.sdp", "cannot be opened as a video"),
        ("picture.png", "cannot be opened as a video"),
        ("gap.mkv", "time stamps jump from 2.000 s to 4000.000 s"),
        ("narrow.mp4", "has frames of 4096 x 64 pixels"),
        ("none.mp4", "no such video"),
    ],
)
def test_what_is_no_usable_video_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    whole = write_video(tmp_path / "whole.mp4", TIMES)
    path = tmp_path / name
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{whole.name}\n#EXT-X-ENDLIST\n"
    contents = {
        "text.mp4": b"no video",
        "empty.mp4": b"",
        "cut.mp4": whole.read_bytes()[:1500],
        "list.m3u8": playlist.encode(),
        "list.ffconcat": f"ffconcat version 1.0\nfile {whole.name}\n".encode(),
        "list.sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }
    if name in contents:
        path.write_bytes(contents[name])
    elif name == "sound.m4a":
        write_sound(path)
    elif name == "still.mp4":
        write_video(path, [0.0])
    elif name == "gap.mkv":
        write_video(path, [0.0, 1.0, 2.0, 4000.0, 4001.0])
    elif name == "narrow.mp4":
        write_video(path, [0.0, 1.0], width=4096, height=64)
    elif name == "picture.png":
        write_picture(path)
    with pytest.raises(DataError, match=message) as caught:
        shown(path, [0.0, 1.0, 4000.0])
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def write_picture(path: Path) -> None:
    """Writes a still image."""
    import av

    coder = av.CodecContext.create("png", "w")
    coder.width, coder.height, coder.pix_fmt = 16, 16, "rgb24"
    (packet,) = coder.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24"))
    path.write_bytes(bytes(packet))


def test_videos_are_found(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MKV", "deep/c.avi", ".hidden/d.mp4", "notes.md", "odd.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("# two\nb.mp4\n\ndeep/*.avi\n")
    inside = [tmp_path / "a.MKV", tmp_path / "b.mp4", tmp_path / "deep/c.avi"]
    assert find_videos([str(tmp_path), str(tmp_path / "b.mp4")]) == inside
    assert find_videos([str(tmp_path / "**/*")]) == inside
    assert find_videos([str(tmp_path / "list.txt")]) == inside[1:]
    assert find_videos([str(tmp_path / "odd.bin")]) == [tmp_path / "odd.bin"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("https://a.b/c.mp4", "is no file of an object store"),
        ("rtsp://a.b/c", "is no file of an object store"),
        ("concat:a.mp4|b.mp4", "no such file or folder"),
        ("memory://nothing/a.mp4", "no such file there"),
        ("none.mp4", "no such file or folder"),
        ("*.mp4", "no video fits this pattern"),
        (".", "has no videos"),
    ],
)
def test_what_names_no_video_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        find_videos([given])
