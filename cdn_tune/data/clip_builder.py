"""Builds a part of the clip cache: reads videos in parallel, writes their clips, names the part when it is whole."""

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdn_tune.data.clip_map import CLIPS, PART
from cdn_tune.data.files import sync_folder

Progress = Callable[[int, int], None]
STAGING = ".building-"
MAX_THREADS = 16


def build_part(
    entry: Path,
    videos: Sequence[str],
    read: Callable[[str], torch.Tensor],
    shape: tuple[int, int],
    dtype: str,
    about: dict[str, Any],
    progress: Progress | None = None,
) -> Path:
    """Writes the clips of videos as a new part of a cache entry and returns its folder.

    The caller must be the entry's only builder: what an earlier one left behind when it was killed is removed. The disk
    space is taken first, so a full disk shows at once; whatever goes wrong, nothing is left behind.

    Args:
        entry: Folder of the entry.
        videos: Their names, V >= 1.
        read: Returns the clips of a video, float32 [T, D]; called by several threads.
        shape: (T, D).
        dtype: Numpy name of the stored type.
        about: What `part.json` says besides the videos.
        progress: Called with (videos done, videos), by this thread.

    Raises:
        OSError: If the part cannot be written.
        DataError: If a video's features cannot be used, as `read` raises it.
    """
    for left in entry.glob(f"{STAGING}*"):
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=entry))
    try:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        file = os.open(staging / CLIPS, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, size * len(videos))  # a full disk is told now
            else:
                os.ftruncate(file, size * len(videos))
            _fill(file, size, videos, read, dtype, progress)
            os.fsync(file)
        finally:
            os.close(file)
        with (staging / PART).open("w", encoding="utf-8") as text:
            json.dump({**about, "videos": list(videos)}, text)
            text.flush()
            os.fsync(text.fileno())
        staging.chmod(0o755)
        part = entry / f"part-{staging.name.removeprefix(STAGING)}"
        staging.replace(part)
        sync_folder(entry)
        return part
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fill(
    file: int,
    size: int,
    videos: Sequence[str],
    read: Callable[[str], torch.Tensor],
    dtype: str,
    progress: Progress | None,
) -> None:
    stop = threading.Event()

    def write(row: int) -> None:
        if not stop.is_set():
            block = np.ascontiguousarray(read(videos[row]).numpy(), dtype=dtype).reshape(-1).view(np.uint8)
            done = 0
            while done < size:
                done += os.pwrite(file, block[done:].data, row * size + done)

    with ThreadPoolExecutor(min(available_cpus(), MAX_THREADS), "cdn-tune-clips") as pool:
        tasks = [pool.submit(write, row) for row in range(len(videos))]
        try:
            for done, task in enumerate(as_completed(tasks), start=1):
                task.result()
                if progress is not None:
                    progress(done, len(videos))
        finally:
            stop.set()


def available_cpus() -> int:
    """Returns how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
