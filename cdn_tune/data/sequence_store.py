"""The sequence store: frame features of videos as they are, or resized, in the node's clip cache.

Letters: N frame features in the file, S steps of a sequence, D feature size, V sequences.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cdn_tune.config import SequenceConfig
from cdn_tune.data.cache import Hold
from cdn_tune.data.clip_cache import ClipKey, Lengths, open_parts
from cdn_tune.data.clip_map import CLIPS, Buffers, Stored, read_part
from cdn_tune.data.features import FeatureStore, Frames, source_fingerprint
from cdn_tune.data.files import Progress
from cdn_tune.data.sequences import resized, resized_grid, subsampled
from cdn_tune.moments.grid import Grid


class Timed(NamedTuple):
    """A video's sequence in time."""

    steps: int  # of the sequence S
    grid: Grid  # its seconds


def sequence_of(frames: Frames, config: SequenceConfig) -> torch.Tensor:
    """Returns frame features [N, D] as a family reads them, float32 [S, D]."""
    steps = subsampled(frames, config.every, config.normalise)
    return steps if config.form == "variable" else resized(steps, config.length)


def timed(config: SequenceConfig, frames: int, duration: float, whole: int | None = None) -> Timed:
    """Returns how long the sequence of so many frame features is, and its grid.

    Args:
        config: How the sequence is made.
        frames: Frame features N.
        duration: Of the whole video, in seconds.
        whole: Frame features of the whole video; N if None.
    """
    span = ((whole or frames) - 1) * config.clip_stride + config.clip_size  # frames
    fps = span / duration if config.fps is None else config.fps
    steps = -(-frames // config.every)
    grid = Grid(config.clip_size, config.clip_stride * config.every, fps)
    if config.form == "variable":
        return Timed(steps, grid)
    return Timed(config.length, resized_grid(grid, steps, config.length))


class SequenceMap:
    """Sequences in memory-mapped files that all processes of a node share, read only. Picklable: paths are pickled.

    Args:
        parts: Folders of the cache's parts.
        key: What determines them.
        keep: The hold on their entry; not pickled.

    Raises:
        OSError: If a part is missing.
        ValueError: If a part is damaged.
    """

    def __init__(self, parts: Sequence[Path], key: ClipKey, keep: object = None) -> None:
        self.parts, self.key = tuple(parts), key
        self._keep = keep
        self._of: dict[str, tuple[Stored, int]] = {}
        for part in self.parts:
            held = read_part(part, key.length, key.feature_size, key.dtype)
            if not held.frames:
                raise ValueError(f"{part}: no lengths of its videos")
            stored = np.memmap(part / CLIPS, key.dtype, "r", shape=(sum(held.rows), key.feature_size))
            ends = np.cumsum(held.rows).tolist()
            for video, rows, end, frames in zip(held.videos, held.rows, ends, held.frames, strict=True):
                self._of.setdefault(video, (stored[end - rows : end], frames))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.parts, self.key)

    def __contains__(self, video: object) -> bool:
        return video in self._of

    def sequence(self, video: str) -> Stored:
        """Returns the sequence of a video [S, D], mapped."""
        return self._of[video][0]

    def frames(self, video: str) -> int:
        """Returns how many frame features a video has in its source."""
        return self._of[video][1]


def _reopen(parts: Sequence[Path], key: ClipKey) -> SequenceMap | None:
    """Returns a map that was pickled, held again; None where its parts are missing, as on another node."""
    try:
        return SequenceMap(parts, key, [Hold(entry) for entry in {part.parent for part in parts} if entry.is_dir()])
    except (OSError, ValueError):
        return None


class SequenceStore(FeatureStore):
    """Sequences of videos in an HDF5 file; see `FeatureStore`, whose clips they are.

    Args:
        path: HDF5 file with one dataset [N, D] of floats per video.
        config: How they are made.
        feature_size: Expected D.
        member: Name of the dataset in a video's group, for files with a group per video.
    """

    def __init__(self, path: Path, config: SequenceConfig, feature_size: int, member: str | None = None) -> None:
        super().__init__(path, config.length, feature_size, member=member)
        self.config = config
        self.mapped: SequenceMap | None = None

    def prepare(self, videos: Iterable[str], dtype: str = "float32", progress: Progress | None = None) -> None:
        """Serves the sequences of videos from the node's clip cache from now on; see `FeatureStore.prepare`."""
        config = self.config
        length = config.length if config.form == "fixed" else None
        kind = f"{'linear' if config.form == 'fixed' else 'none'}, every {config.every}"
        normalisation = "l2" if config.normalise else "none"
        key = ClipKey(source_fingerprint(self.path), length, self.feature_size or 0, kind, dtype, normalisation)

        def measure(video: str) -> Lengths:
            frames, _ = self.measure(video)
            return Lengths(timed(config, frames, 1.0).steps, frames)

        found = open_parts(key, videos, self._compute, progress, measure)
        self.mapped = None if found is None else SequenceMap(found.folders, key, keep=found.hold)

    def timed(self, video: str, duration: float) -> Timed:
        """Returns how long a video's sequence is, and its grid."""
        known = self.mapped is not None and video in self.mapped
        frames = self.mapped.frames(video) if self.mapped is not None and known else self.measure(video)[0]
        return timed(self.config, frames, duration)

    def padded(self, videos: Sequence[str], parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns parts of V videos, float32 [V, S, D] with zeros after the shorter ones, and a mask of steps [V, S].

        Args:
            videos: Their names.
            parts: First step and number of steps of each [V, 2].

        Raises:
            DataError: If the features of a video cannot be used.
        """
        longest = int(parts[:, 1].max())
        found = self._buffers.take((len(videos), longest, self.feature_size or 0), torch.float32)
        for row, (video, (first, steps)) in enumerate(zip(videos, parts.tolist(), strict=True)):
            if self.mapped is not None and video in self.mapped:
                found[row, :steps].numpy()[...] = self.mapped.sequence(video)[first : first + steps]
            else:
                found[row, :steps] = self.clips(video)[first : first + steps]
            found[row, steps:] = 0
        return found, torch.arange(longest) < parts[:, 1:]

    def reset(self) -> None:
        """Forgets what belongs to one process."""
        super().reset()
        self._buffers = Buffers()

    def _compute(self, video: str) -> torch.Tensor:
        return sequence_of(self.frames(video), self.config)
