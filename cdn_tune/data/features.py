"""The feature store: frame features in HDF5, one dataset [frames, D] per video, served as clips of a fixed length.

Letters: N frames in the file, T rows served, D feature size.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from cdn_tune.data.clips import to_fixed_length
from cdn_tune.errors import DataError

MEMORY_BYTES = 2 << 30


class FeatureStore:
    """Clips of videos, read from an HDF5 file when first asked for and kept in memory up to a limit.

    The file is opened by each process when it first reads, so a store may be pickled, and used after a fork; several
    threads may share one.

    Args:
        path: HDF5 file with one dataset [N, D] of floats per video.
        length: Rows T a video is resampled to.
        feature_size: Expected D.
        legacy: Resample as the published code does (see `to_fixed_length`).
        memory_bytes: Clips kept in memory; the least recently used go first.
    """

    def __init__(
        self, path: Path, length: int, feature_size: int, legacy: bool = False, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self.path, self.length, self.feature_size = path, length, feature_size
        self.legacy, self.memory_bytes = legacy, memory_bytes
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._bytes = 0
        self._file: Any = None
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def clips(self, video: str) -> torch.Tensor:
        """Returns the clips of a video: float32 [T, D], each frame L2-normalised before averaging. Do not write to it.

        Raises:
            DataError: If the video has no features or they cannot be used (see `frames`).
        """
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if (clips := self._kept.get(video)) is not None:
                self._kept.move_to_end(video)
                return clips
            clips = to_fixed_length(self._read(video), self.length, self.legacy)
            self._kept[video] = clips
            self._bytes += clips.nbytes
            while self._bytes > self.memory_bytes and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
            return clips

    def frames(self, video: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Returns the frame features of a video as stored, float32 [N, D].

        Raises:
            DataError: If the video is absent, or its entry is not a readable, finite [N, D] array with N >= 1.
        """
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            return self._read(video)

    def require(self, videos: Iterable[str]) -> None:
        """Checks that every video has an entry, and that the entry of the first can be read and has the right size.

        Raises:
            DataError: If not; names the first three missing videos and their number.
        """
        wanted = dict.fromkeys(videos)
        with self._lock:
            try:
                present = frozenset(self._open())
            except (OSError, RuntimeError) as error:
                raise DataError(f"{self.path}: cannot be listed ({_brief(error)}); copy or convert it again") from None
        if missing := [video for video in wanted if video not in present]:
            names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise DataError(
                f"{self.path}: no features for {len(missing)} of {len(wanted)} annotated videos ({names}); "
                "add them to the file, or set data.features to the file that has them"
            )
        if wanted:
            self.clips(next(iter(wanted)))

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

    def _read(self, video: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        where = f"{self.path}: video {video!r}"
        try:
            entry = self._open().get(video)
            if entry is None:
                raise DataError(f"{where} has no features; add them, or remove its annotations")
            self._check(entry, where)
            with np.errstate(over="ignore"):
                frames: np.ndarray[Any, np.dtype[np.float32]] = entry[()].astype(np.float32, copy=False)
        except (OSError, RuntimeError, KeyError) as error:
            raise DataError(f"{where} cannot be read ({_brief(error)}); copy or convert the features again") from None
        finite = np.isfinite(frames)
        if not finite.all():
            row, column = (int(index) for index in np.argwhere(~finite)[0])
            value = frames[row, column]
            raise DataError(f"{where} has the value {value} in row {row}, column {column}; extract its features again")
        return frames

    def _check(self, entry: Any, where: str) -> None:
        if not isinstance(entry, h5py.Dataset):
            raise DataError(f"{where} is an HDF5 {type(entry).__name__.lower()}; expected a dataset [frames, size]")
        if entry.dtype.kind not in "fiu":
            raise DataError(f"{where} holds {entry.dtype} values; expected floats, convert the features again")
        if entry.ndim != 2:
            raise DataError(f"{where} has shape {list(entry.shape)}; expected [frames, {self.feature_size}]")
        if entry.shape[1] != self.feature_size:
            raise DataError(
                f"{where} has features of size {entry.shape[1]} but data.feature_size={self.feature_size}; "
                f"set data.feature_size={entry.shape[1]} or data.features to another file"
            )
        if entry.shape[0] == 0:
            raise DataError(f"{where} has 0 frames; extract its features again, or remove its annotations")


def open_features(path: Path) -> Any:
    """Returns the open HDF5 file, for reading.

    Raises:
        DataError: If it is missing, empty, truncated or no HDF5 file.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such feature file; put it there or set data.features to its path")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the feature file is empty (0 bytes); copy or convert it again")
    try:
        return h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened as HDF5 ({_brief(error)}); copy or convert it again") from None


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
