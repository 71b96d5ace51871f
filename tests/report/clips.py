"""Tiny videos, which fade from black to white."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_clip(path: Path, seconds: float, rate: int = 8, side: tuple[int, int] = (96, 64)) -> Path:
    """Writes a video of grey frames, whose level is the share of its time, and returns its path."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = side
    count = round(seconds * rate)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(count):
            level = np.full((height, width, 3), round(255 * (number + 0.5) / count), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(level, "rgb24")):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)
    return path
