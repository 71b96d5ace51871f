"""The data pipeline against a plain loader, as ratios in one run: ``python -m benchmarks.data``.

The plain loader is what published code does per item: read the video from HDF5, normalise every frame, average frames
in a Python loop, and fill the IoU map over Python lists. Features are planted, 4096 wide, in a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import torch

from cdn_tune.config import DataConfig
from cdn_tune.data.batches import epoch_batches, epoch_generator
from cdn_tune.data.dataset import MomentDataset, load_splits
from cdn_tune.data.planted import plant
from cdn_tune.moments.temporal_map import iou_maps

FEATURE_SIZE, VIDEOS, FRAME_RATE = 4096, 150, 4.0
PROCESSES = 4
SECONDS = 3.0  # how long a warm loader is measured
RESULTS = Path(__file__).parent / "results" / "data.md"


def plain_item(path: Path, video: str, duration: float, moment: tuple[float, float], clips: int) -> tuple:
    """Returns clips [S, D] and IoU map [S, S] of one query, the plain way: the file is opened for every item."""
    with h5py.File(path) as file:
        frames = torch.nn.functional.normalize(torch.from_numpy(file[video][:]), dim=1)
    averaged = torch.zeros(clips, frames.shape[1])
    for clip in range(clips):
        first, last = round(clip * len(frames) / clips), round((clip + 1) * len(frames) / clips)
        averaged[clip] = frames[first:last].mean(dim=0) if first < last else frames[min(first, len(frames) - 1)]
    ious = []
    start, end = moment
    for first in range(clips):
        row = []
        for last in range(clips):
            a, b = first * duration / clips, (last + 1) * duration / clips
            shared = max(min(b, end) - max(a, start), 0.0)
            row.append(shared / max(max(b, end) - min(a, start), 1e-9) if first <= last else 0.0)
        ious.append(row)
    return averaged, torch.tensor(ious)


def config_of(root: Path, clips: int, dtype: str = "float32") -> DataConfig:
    """Returns the data section that serves `clips` clips of the planted videos."""
    return DataConfig(
        dataset="charades_sta",
        root=str(root),
        feature_size=FEATURE_SIZE,
        frames=clips,
        word_vectors="glove.planted.50d.txt",
        word_size=50,
        cache_dtype=dtype,
    )


def plain_epoch(root: Path, dataset: MomentDataset, clips: int, limit: int | None = None) -> float:
    """Returns the seconds per item of the plain loader, over the whole split or `limit` items of it."""
    items = dataset.annotations[:limit]
    start = time.perf_counter()
    for item in items:
        plain_item(root / "vgg_rgb_features.hdf5", item.video, item.duration, (item.start, item.end), clips)
    return (time.perf_counter() - start) / len(items)


def warm(dataset: MomentDataset, clips: int, batch_size: int) -> float:
    """Returns the seconds per item of batches with their IoU maps, once everything has been touched."""
    batches = epoch_batches(len(dataset), batch_size, epoch_generator(seed=0, epoch=1))

    def go(seconds: float) -> float:
        items, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for indices in batches:
                batch = dataset.batch(indices)
                iou_maps(batch.durations, batch.moments, clips)
                items += len(batch)
        return (time.perf_counter() - start) / items

    go(0.2)
    return go(SECONDS)


def in_cache(folder: Path, work: Callable[[], float]) -> float:
    """Returns what `work` does with `folder` as the cache folder."""
    before = os.environ.get("CDN_TUNE_CACHE")
    os.environ["CDN_TUNE_CACHE"] = str(folder)
    try:
        return work()
    finally:
        if before is None:
            del os.environ["CDN_TUNE_CACHE"]
        else:
            os.environ["CDN_TUNE_CACHE"] = before


def cold(root: Path, clips: int, batch_size: int) -> float:
    """Returns the seconds of a first epoch, opening the data and building the cache included."""
    start = time.perf_counter()
    dataset = load_splits(config_of(root, clips), ("train",))["train"]
    for indices in epoch_batches(len(dataset), batch_size, epoch_generator(seed=0, epoch=1)):
        batch = dataset.batch(indices)
        iou_maps(batch.durations, batch.moments, clips)
    return time.perf_counter() - start


def hold_open(root: str, clips: str) -> None:
    """In a process of its own: touches every clip, says so, waits, and prints the memory of the mapped clips in kB."""
    dataset = load_splits(config_of(Path(root), int(clips)), ("train",))["train"]
    for first in range(0, len(dataset), 32):
        dataset.batch(range(first, min(first + 32, len(dataset))))
    print("ready", flush=True)
    sys.stdin.readline()
    rss = pss = 0
    mapped = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(":")
        if name == "Rss" and mapped:
            rss += int(rest.split()[0])
        elif name == "Pss" and mapped:
            pss += int(rest.split()[0])
        elif "-" in line.split(" ", 1)[0]:
            mapped = line.endswith("clips.bin")
    print(rss, pss, flush=True)
    sys.stdin.readline()


def shared_memory(root: Path, clips: int) -> tuple[float, float, float]:
    """Returns MiB of clips mapped by `PROCESSES` processes: of one (RSS), of all together (PSS), and all copies."""
    command = [sys.executable, "-m", "benchmarks.data", "--hold", str(root), str(clips)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    found = []
    for process in processes:  # all are still holding
        process.stdin.write("\n")
        process.stdin.flush()
        found.append([int(size) / 1024 for size in process.stdout.readline().split()])
    for process in processes:
        process.communicate("\n")
    return found[0][0], sum(pss for _, pss in found), sum(rss for rss, _ in found)


def measure(root: Path, cache: Path) -> list[str]:
    """Returns the Markdown rows."""
    rows = []
    for clips, batch_size, wanted in ((16, 32, 20), (128, 8, 60)):
        seconds = in_cache(cache / f"cold-{clips}", lambda clips=clips, size=batch_size: cold(root, clips, size))
        os.environ["CDN_TUNE_CACHE"] = str(cache / f"cold-{clips}")
        dataset = load_splits(config_of(root, clips), ("train",))["train"]
        plain = plain_epoch(root, dataset, clips, limit=150)
        fast = warm(dataset, clips, batch_size)
        half = warm(load_splits(config_of(root, clips, "float16"), ("train",))["train"], clips, batch_size)
        epoch = plain * len(dataset)
        del dataset
        rows += [
            f"| warm item, {clips} clips, float32 | {plain * 1e3:.2f} ms | {fast * 1e3:.3f} ms "
            f"| {plain / fast:.0f}x | >= {wanted}x |",
            f"| warm item, {clips} clips, float16 | {plain * 1e3:.2f} ms | {half * 1e3:.3f} ms "
            f"| {plain / half:.0f}x | |",
            f"| cold first epoch with the building, {clips} clips | {epoch:.2f} s | {seconds:.2f} s "
            f"| {epoch / seconds:.1f}x | >= 1x |",
        ]
    one, together, copies = shared_memory(root, 128)
    rows.append(
        f"| clips held by {PROCESSES} processes, 128 clips | {copies:.0f} MiB as copies | {together:.0f} MiB (PSS) "
        f"| {together / one:.2f} copies | 1 copy |"
    )
    return rows


def main() -> list[str]:
    """Prints the section of the results and writes it to ``benchmarks/results/data.md``; returns its lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hold", nargs=2, metavar=("ROOT", "CLIPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hold:
        hold_open(*arguments.hold)
        return []
    torch.set_num_threads(1)
    before = os.environ.get("CDN_TUNE_CACHE")
    with tempfile.TemporaryDirectory(prefix="cdn-tune-bench-") as folder:
        root = plant(Path(folder) / "planted", videos=VIDEOS, feature_size=FEATURE_SIZE, frame_rate=FRAME_RATE).root
        try:
            rows = measure(root, Path(folder))
        finally:
            if before is None:
                os.environ.pop("CDN_TUNE_CACHE", None)
            else:
                os.environ["CDN_TUNE_CACHE"] = before
    lines = [
        "## Data",
        "",
        f"`python -m benchmarks.data`: {VIDEOS} planted videos of about {round(FRAME_RATE * 30)} frames of "
        f"{FEATURE_SIZE} values; one torch thread, {os.cpu_count()} cores. The plain loader is in the same file.",
        "",
        "| what | plain loader | cdn-tune | ratio | aim |",
        "|---|---|---|---|---|",
        *rows,
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return lines


if __name__ == "__main__":
    main()
