"""The clip cache: clips computed once per source, length, resampling and type, shared by all trials on a node.

Sequences, which families read that take videos of any length, are kept in the same way.

    <cache>/clips/<key>/part-*/    the clips of some videos (see `clip_map`)
    <cache>/clips/<key>/in-use     locked while someone has the entry open; its time is that of the last use

The key depends on the source's content, so a source that changed has another one. Videos that an experiment needs and
no part has become one part more: train and val first, test when it is evaluated.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock

from cdn_tune.data.cache import CACHE, LIMIT, Hold, cache_limit, make_room, user_cache
from cdn_tune.data.clip_map import CLIPS, PART, ClipMap, read_part
from cdn_tune.data.files import Progress, available_cpus, brief, sync_folder

VERSION = 1
LOCK = ".build.lock"
STAGING = ".building-"
MAX_THREADS = 16
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipKey:
    """What determines cached clips.

    Attributes:
        source: Fingerprint of the feature file's content.
        length: Clips T of a video; None if each video has its own.
        feature_size: Size D of a clip.
        normalisation: How frames are scaled before averaging.
        resampling: Name of the resampling.
        dtype: Numpy name of the stored type.
        version: Version of the computation.
    """

    source: str
    length: int | None
    feature_size: int
    resampling: str
    dtype: str
    normalisation: str = "l2"
    version: int = VERSION

    @property
    def name(self) -> str:
        """Returns the name of the cache entry."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:24]

    def bytes_of(self, rows: int) -> int:
        """Returns how many bytes so many rows take."""
        return rows * self.feature_size * np.dtype(self.dtype).itemsize


class Lengths(NamedTuple):
    """How long a sequence is."""

    rows: int  # of the sequence
    frames: int  # frame features that its video has in the source


def open_clips(
    key: ClipKey, videos: Iterable[str], read: Callable[[str], torch.Tensor], progress: Progress | None = None
) -> ClipMap | None:
    """Returns the clips of videos from the cache; see `open_parts`."""
    found = open_parts(key, videos, read, progress)
    if found is None or key.length is None:
        return None
    return ClipMap(found.folders, key.length, key.feature_size, key.dtype, keep=found.hold)


class Parts(NamedTuple):
    """Folders of an entry that together hold some videos."""

    folders: list[Path]
    hold: Hold  # as long as it lives, the entry stays


def open_parts(
    key: ClipKey,
    videos: Iterable[str],
    read: Callable[[str], torch.Tensor],
    progress: Progress | None = None,
    measure: Callable[[str], Lengths] | None = None,
) -> Parts | None:
    """Returns where the cache holds videos, building there what is missing; None, with a warning, if it cannot.

    Of several processes one builds and the others wait. A builder that is killed leaves nothing broken.

    Args:
        key: What determines the clips.
        videos: Names of the videos.
        read: Returns the clips of a video, float32 [T, D]; called by several threads, for missing videos alone.
        progress: Called by this thread with (videos built, videos to build).
        measure: Of sequences, returns how long one is.

    Raises:
        DataError: If a video's features cannot be used, or CDN_TUNE_CACHE_LIMIT is no size.
    """
    wanted = sorted(set(videos))
    root = user_cache() / "clips"
    entry = root / key.name
    limit = cache_limit()
    try:
        hold = Hold(entry)
        parts, missing = _find(entry, key, wanted)
        if missing:
            with FileLock(entry / LOCK):
                parts, missing = _find(entry, key, wanted, discard=True)  # another builder may have been first
                if missing:
                    lengths = None if measure is None else [measure(video) for video in missing]
                    rows = [key.length or 0] * len(missing) if lengths is None else [each.rows for each in lengths]
                    needed = key.bytes_of(sum(rows))
                    if not make_room(root, needed, limit):
                        _without(root, f"{_size(needed)} more would pass the limit of {_size(limit)}; raise {LIMIT}")
                        return None
                    about: dict[str, Any] = {**asdict(key), "videos": missing}
                    if lengths is not None:
                        about |= {"rows": rows, "frames": [each.frames for each in lengths]}
                    parts.append(_build_part(entry, key, about, rows, read, progress))
        return Parts(parts, hold)
    except OSError as error:
        _without(root, f"{error.strerror or brief(error)}; free space there or set {CACHE} to a writable folder")
        return None


def _find(entry: Path, key: ClipKey, wanted: list[str], discard: bool = False) -> tuple[list[Path], list[str]]:
    """Returns the whole parts that have wanted videos, and the videos that none has; may discard damaged parts."""
    missing = dict.fromkeys(wanted)
    parts = []
    for part in sorted(entry.glob("part-*")):
        try:
            held = read_part(part, key.length, key.feature_size, key.dtype)
            found = [video for video in held.videos if video in missing]
        except (OSError, ValueError) as error:
            if discard:
                _LOG.warning("damaged part of the clip cache removed (%s); its clips are built again", error)
                shutil.rmtree(part, ignore_errors=True)
            continue
        for video in found:
            del missing[video]
        if found:
            parts.append(part)
    return parts, list(missing)


def _build_part(
    entry: Path,
    key: ClipKey,
    about: dict[str, Any],
    rows: Sequence[int],
    read: Callable[[str], torch.Tensor],
    progress: Progress | None,
) -> Path:
    """Writes the clips of videos, which `about` names, as a new part of a cache entry and returns its folder.

    The caller must be the entry's only builder: what an earlier one left behind when it was killed is removed. The disk
    space is taken first, so a full disk shows at once; whatever goes wrong, nothing is left behind.
    """
    for left in entry.glob(f"{STAGING}*"):
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=entry))
    try:
        size = key.bytes_of(sum(rows))
        file = os.open(staging / CLIPS, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, size)
            else:
                os.ftruncate(file, size)
            _fill(file, key, about["videos"], rows, read, progress)
            os.fsync(file)
        finally:
            os.close(file)
        with (staging / PART).open("w", encoding="utf-8") as text:
            json.dump(about, text)
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
    key: ClipKey,
    videos: Sequence[str],
    rows: Sequence[int],
    read: Callable[[str], torch.Tensor],
    progress: Progress | None,
) -> None:
    starts, stop = [key.bytes_of(first) for first in accumulate(rows, initial=0)], threading.Event()

    def write(row: int) -> None:
        if not stop.is_set():
            block = np.ascontiguousarray(read(videos[row]).numpy(), dtype=key.dtype).reshape(-1).view(np.uint8)
            size, done = starts[row + 1] - starts[row], 0
            while done < size:
                done += os.pwrite(file, block[done:].data, starts[row] + done)

    with ThreadPoolExecutor(min(available_cpus(), MAX_THREADS), "cdn-tune-clips") as pool:
        tasks = [pool.submit(write, row) for row in range(len(videos))]
        try:
            for done, task in enumerate(as_completed(tasks), start=1):
                task.result()
                if progress is not None:
                    progress(done, len(videos))
        finally:
            stop.set()


def _without(root: Path, why: str) -> None:
    _LOG.warning("%s: the clip cache is not used: %s. Going on without, which is slower", root, why)


def _size(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.1f} MiB"
