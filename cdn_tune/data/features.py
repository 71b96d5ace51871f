"""The feature store: frame features in HDF5, one dataset [frames, D] per video, served as clips of a fixed length.

After `prepare` clips come from the node's clip cache, mapped read only; without it each is computed when first needed
and kept in memory.

Letters: N frames in the file, T rows served, D feature size.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch

from cdn_tune.data.clip_cache import ClipKey, open_clips
from cdn_tune.data.clip_map import ClipMap
from cdn_tune.data.clips import resample
from cdn_tune.data.files import Progress, brief, is_remote, sampled_sha256
from cdn_tune.data.hdf5 import UNREADABLE, check_dataset, find, open_features
from cdn_tune.errors import DataError

MEMORY_BYTES = 2 << 30
BLOCK_BYTES = 256 << 20  # of a long video read at once

Frames = np.ndarray[Any, np.dtype[np.float32]]


class Seen(NamedTuple):
    """What a video's frame features are like."""

    frames: int
    largest: float  # absolute value
    constant: bool  # whether all frames are equal


class FeatureStore:
    """Clips of videos in an HDF5 file.

    The file is opened by each process when it first reads, so a store may be pickled, and used after a fork; several
    threads may share one.

    Args:
        path: HDF5 file with one dataset [N, D] of floats per video; a remote one too (see `files.remote_file`).
        length: Rows T a video is resampled to.
        feature_size: Expected D; any, if None: clips cannot be prepared then.
        legacy: Resample as the published code does (see `to_fixed_length`).
        memory_bytes: Clips kept in memory; the least recently used go first.
        member: Name of the dataset in a video's group, for files with a group per video.
    """

    def __init__(
        self,
        path: Path,
        length: int,
        feature_size: int | None,
        legacy: bool = False,
        memory_bytes: int = MEMORY_BYTES,
        member: str | None = None,
    ) -> None:
        self.member = member
        self.path, self.length, self.feature_size = path, length, feature_size
        self.legacy, self.memory_bytes = legacy, memory_bytes
        self.map: ClipMap | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets what belongs to one process: the open file, and the clips that were kept in memory."""
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._bytes = 0
        self._file: Any = None
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.reset()

    def prepare(self, videos: Iterable[str], dtype: str = "float32", progress: Progress | None = None) -> None:
        """Serves the clips of videos from the node's clip cache from now on, building there what is missing.

        Where the cache cannot be used a warning is logged, and clips are computed and kept in memory as before.
        `dtype`, of the cached clips, is ``float32`` or ``float16``.

        Raises:
            DataError: If the features of a video cannot be used.
        """
        if self.feature_size is None:
            raise ValueError("clips of any size cannot be cached; name the feature size")
        resampling = "legacy" if self.legacy else "all"
        key = ClipKey(source_fingerprint(self.path), self.length, self.feature_size, resampling, dtype)
        self.map = open_clips(key, videos, self._compute, progress)

    def clips(self, video: str) -> torch.Tensor:
        """Returns the clips of a video: float32 [T, D], each frame L2-normalised before averaging. Do not write to it.

        Raises:
            DataError: If the video has no features or they cannot be used (see `frames`).
        """
        if self.map is not None and video in self.map:
            return self.map.gather(self.map.rows((video,)))[0]
        self._after_fork()
        with self._lock:
            if (clips := self._kept.get(video)) is not None:
                self._kept.move_to_end(video)
                return clips
        clips = self._compute(video)
        with self._lock:
            if (first := self._kept.get(video)) is not None:  # another thread was faster
                return first
            self._kept[video] = clips
            self._bytes += clips.nbytes
            while self._bytes > self.memory_bytes and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
            return clips

    def frames(self, video: str) -> Frames:
        """Returns the frame features of a video as stored, float32 [N, D].

        Raises:
            DataError: If the video is absent, or its entry is not a readable, finite [N, D] array with N >= 1.
        """
        return self._read(video, 0, self.measure(video)[0])

    def check(self, video: str) -> Seen:
        """Reads all frames of a video, in blocks, and returns what they are like.

        Raises:
            DataError: As `frames` does.
        """
        count, at_once = self.measure(video)
        largest, top, constant = 0.0, None, True
        for first in range(0, count, at_once):
            frames = self._read(video, first, min(first + at_once, count))
            top = frames[0].copy() if top is None else top
            largest = max(largest, float(np.abs(frames).max()))
            constant = constant and bool((frames == top).all())
        return Seen(count, largest, constant)

    def require(self, videos: Iterable[str]) -> None:
        """Checks that every video has an entry, and that the entry of the first can be read and has the right size.

        Raises:
            DataError: If not; names the first three missing videos and their number.
        """
        wanted = dict.fromkeys(videos)
        with self._lock:
            try:
                present = frozenset(self._open())
            except UNREADABLE as error:
                raise DataError(f"{self.path}: cannot be listed ({brief(error)}); copy or convert it again") from None
        if missing := [video for video in wanted if video not in present]:
            names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise DataError(
                f"{self.path}: no features for {len(missing)} of {len(wanted)} annotated videos ({names}); "
                "add them to the file, or set data.features to the file that has them"
            )
        if wanted:
            self.clips(next(iter(wanted)))

    def rows(self, videos: Sequence[str]) -> torch.Tensor | None:
        """Returns the rows of videos in the clip cache, int64 [B]; None if it is not used."""
        return None if self.map is None else self.map.rows(videos)

    def gather(self, videos: Sequence[str], rows: torch.Tensor | None) -> torch.Tensor:
        """Returns the clips of B >= 1 videos, with their `rows`, as a batch of its own, float32 [B, T, D].

        Raises:
            DataError: If the features of a video cannot be used.
        """
        if self.map is not None and rows is not None:
            return self.map.gather(rows)
        clips = {video: self.clips(video) for video in dict.fromkeys(videos)}
        return torch.stack([clips[video] for video in videos])

    def close(self) -> None:
        """Closes the file in this process; the next read opens it again."""
        with self._lock:
            if self._file is not None and self._pid == os.getpid():
                self._file.close()
            self._file = None

    def _open(self) -> Any:
        if self._file is None:
            self._file = open_features(self.path)
        return self._file

    def _after_fork(self) -> None:
        if self._pid != os.getpid():
            self.reset()

    def _compute(self, video: str) -> torch.Tensor:
        count, at_once = self.measure(video)
        return resample(lambda first, last: self._read(video, first, last), count, self.length, self.legacy, at_once)

    def measure(self, video: str) -> tuple[int, int]:
        """Returns the frames N of a video whose entry is of the right kind and shape, and how many to read at once."""
        self._after_fork()
        with self._lock, self._readable(video) as entry:
            count, size = entry.shape
            return int(count), max(1, BLOCK_BYTES // (4 * int(size)))

    def _read(self, video: str, first: int, last: int) -> Frames:
        """Returns frames [first, last) of a video. HDF5 reads one at a time; threads share the rest of the work."""
        self._after_fork()
        with self._lock, self._readable(video) as entry:
            stored = entry[first:last]
        with np.errstate(over="ignore"):
            frames: Frames = stored.astype(np.float32, copy=False)
        if not np.isfinite(np.einsum("nd,nd->", frames, frames)) and not (finite := np.isfinite(frames)).all():
            row, column = (int(index) for index in np.argwhere(~finite)[0])
            what = f"{self.path}: video {video!r} has the value {frames[row, column]}"
            raise DataError(f"{what} in row {first + row}, column {column}; extract its features again")
        return frames

    @contextmanager
    def _readable(self, video: str) -> Iterator[Any]:
        where = f"{self.path}: video {video!r}"
        try:
            entry = find(self._open(), video, where)
            if entry is None:
                raise DataError(f"{where} has no features; add them, or remove its annotations")
            if self.member is not None and isinstance(entry, h5py.Group) and self.member in entry:
                entry = find(entry, self.member, where)
            self._check(entry, where)
            yield entry
        except UNREADABLE as error:
            raise DataError(f"{where} cannot be read ({brief(error)}); copy or convert the features again") from None

    def _check(self, entry: Any, where: str) -> None:
        check_dataset(entry, where)
        shape, size = list(entry.shape), self.feature_size
        rewrite = f"rewrite the file with: cdn-tune data convert {self.path} NEW.hdf5 --form hdf5"
        if len(shape) != 2:
            remedy = rewrite if sum(length != 1 for length in shape) == 2 else "extract its features again"
            raise DataError(f"{where} has shape {shape}, expected [frames, {size or 'size'}]; {remedy}")
        if size not in (None, shape[1]):
            raise DataError(
                f"{where} has features of size {shape[1]} but data.feature_size={size}; "
                f"set data.feature_size={shape[1]} or data.features to another file"
                + (f", or, if it is transposed, {rewrite} --feature-size {size}" if shape[0] == size else "")
            )
        if not all(shape):
            raise DataError(f"{where} has 0 frames; extract its features again, or remove its annotations")


def source_fingerprint(path: Path) -> str:
    """Returns what identifies the content of a feature file: size, time of the last change, and sampled bytes of it.

    Of a remote file, what its store gives (the entity tag, on S3).

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        if is_remote(path):
            return str(path.fs.ukey(path.path))  # type: ignore[attr-defined]
        stat = path.stat()
        return f"{stat.st_size}-{stat.st_mtime_ns}-{sampled_sha256(path)}"
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
