"""The clip map: clips of many videos in memory-mapped files that all processes of a node share, read only.

Letters: B videos of a batch, V videos in a part, T clips, D feature size.

A part is a folder with `clips.bin`, [V, T, D] in C order, and `part.json`, which names the videos of its rows. It is
written once, whole, and never changed. A part of sequences, which differ in length, has them one after the other.
"""

import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.data.cache import Hold
from cdn_tune.data.files import read_json

CLIPS, PART = "clips.bin", "part.json"

Stored = npt.NDArray[np.float32 | np.float16]
_PROBE = [np.empty(1, np.uint8)]
_UNUSED = sys.getrefcount(_PROBE[0])  # of an array that only a list holds; it depends on the interpreter


class Part(NamedTuple):
    """What a part holds.

    Attributes:
        videos: The videos, in the order of its rows.
        rows: Rows of each.
        frames: Of sequences, the frame features that each video has in its source.
    """

    videos: list[str]
    rows: list[int]
    frames: list[int]


class Buffers:
    """Returns tensors in memory that is used again once no tensor or view shares it. Threads may share one.

    Fresh memory costs a page fault every 4 KiB, which on many machines takes longer than to copy the page.

    Args:
        kept: How many buffers are kept at most; further ones are freed after use.
    """

    def __init__(self, kept: int = 8) -> None:
        self._kept: list[npt.NDArray[np.uint8]] = []
        self._limit = kept
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Returns a tensor of any content that shares memory with no other that is alive."""
        size = int(np.prod(shape)) * dtype.itemsize
        with self._lock:
            base = self._free(size)
            # The tensor's storage holds `base` for as long as any view of it lives: that is how `_free` can tell.
            return torch.from_numpy(base)[:size].view(dtype).view(shape)

    def _free(self, size: int) -> npt.NDArray[np.uint8]:
        small = None
        for place in range(len(self._kept)):
            if sys.getrefcount(self._kept[place]) <= _UNUSED:
                if len(self._kept[place]) >= size:
                    return self._kept[place]
                small = place
        base = np.empty(max(size, 1), np.uint8)
        if small is not None:
            self._kept[small] = base
        elif len(self._kept) < self._limit:
            self._kept.append(base)
        return base


class ClipMap:
    """Clips of the videos of some parts. Picklable: the paths of the parts are pickled.

    Args:
        parts: Folders of the parts.
        length: Clips T of a video.
        feature_size: Size D of a clip.
        dtype: Numpy name of the stored type, ``float32`` or ``float16``.
        keep: Anything that has to live as long as the map, such as the hold on its entry; not pickled.

    Raises:
        OSError: If a part is missing.
        ValueError: If a part is damaged: not of the size or shape it names.
    """

    def __init__(self, parts: Sequence[Path], length: int, feature_size: int, dtype: str, keep: object = None) -> None:
        self.parts, self.length, self.feature_size, self.dtype = tuple(parts), length, feature_size, dtype
        self._keep = keep
        self._stored: list[Stored] = []
        self._buffers = Buffers()
        self._rows: dict[str, int] = {}
        first = 0
        firsts = [0]
        for part in self.parts:
            videos = read_part(part, length, feature_size, dtype).videos
            self._stored.append(np.memmap(part / CLIPS, dtype, "r", shape=(len(videos), length, feature_size)))
            for row, video in enumerate(videos, start=first):
                self._rows.setdefault(video, row)
            first += len(videos)
            firsts.append(first)
        self._firsts = torch.tensor(firsts)

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, (self.parts, self.length, self.feature_size, self.dtype)

    def __contains__(self, video: object) -> bool:
        return video in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, videos: Iterable[str]) -> torch.Tensor:
        """Returns the rows of the clips of videos, int64 [B], for `gather`.

        Raises:
            KeyError: If a video is not in the map.
        """
        return torch.tensor([self._rows[video] for video in videos], dtype=torch.int64)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the clips at `rows`, int64 [B], as float32 [B, T, D], copied once (twice where parts meet)."""
        clips = self._buffers.take((len(rows), self.length, self.feature_size), torch.float32)
        if len(self._stored) == 1:
            self._copy(self._stored[0], rows.numpy(), clips)
            return clips
        part_of = torch.bucketize(rows, self._firsts[1:], right=True)
        for part, stored in enumerate(self._stored):
            here = (part_of == part).nonzero().flatten()
            if len(here):
                some = self._buffers.take((len(here), *clips.shape[1:]), torch.float32)
                self._copy(stored, (rows[here] - self._firsts[part]).numpy(), some)
                clips[here] = some
        return clips

    def _copy(self, stored: Stored, rows: npt.NDArray[np.int64], clips: torch.Tensor) -> None:
        if stored.dtype == np.float32:
            stored.take(rows, axis=0, out=clips.numpy(), mode="clip")  # `clip` copies without a detour
        else:
            half = self._buffers.take(tuple(clips.shape), torch.float16)
            stored.take(rows, axis=0, out=half.numpy(), mode="clip")
            clips.copy_(half)


def reopen(parts: Sequence[Path], length: int, feature_size: int, dtype: str) -> ClipMap | None:
    """Returns a map that was pickled, held again; None where its parts are missing, as on another node."""
    try:
        holds = [Hold(entry) for entry in {part.parent for part in parts} if entry.is_dir()]
        return ClipMap(parts, length, feature_size, dtype, keep=holds)
    except (OSError, ValueError):
        return None


def read_part(part: Path, length: int | None, feature_size: int, dtype: str) -> Part:
    """Returns what a part holds; `length` is the rows of every video, None if they differ.

    Raises:
        OSError: If it is missing.
        ValueError: If it is damaged.
    """
    try:
        about = read_json(part / PART)
        videos = [str(video) for video in about["videos"]]
        rows = [length] * len(videos) if length is not None else [int(count) for count in about["rows"]]
        frames = [int(count) for count in about.get("frames", ())]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{part / PART}: {error}") from None
    size = sum(rows) * feature_size * np.dtype(dtype).itemsize
    if (part / CLIPS).stat().st_size != size or not videos or len(rows) != len(videos):
        raise ValueError(f"{part / CLIPS}: not the {size} bytes of {len(videos)} videos")
    if min(rows) < 1 or len(frames) not in (0, len(videos)):
        raise ValueError(f"{part / PART}: not the lengths of {len(videos)} videos")
    return Part(videos, rows, frames)
