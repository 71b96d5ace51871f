"""Planted feature files: written video by video within bounded memory, gone on with after a kill, the same bytes ever.

The HDF5 file is laid out first, every dataset at its place and empty; the rows are then written to these places. A
journal names the videos whose rows are on disk.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import numpy.typing as npt

SYNC_BYTES = 64 << 20  # of rows between two entries in the journal
JOURNAL = "journal.txt"


class Rows(Protocol):
    """Yields the rows of a video in blocks, float32 [rows, D]."""

    def __call__(self, video: str) -> Iterator[npt.NDArray[np.float32]]:
        """Yields them in order."""


def write_features(
    path: Path,
    frames: Mapping[str, int],
    feature_size: int,
    rows: Rows,
    member: str | None,
    attributes: Mapping[str, Any],
    key: str,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Writes a feature file, or goes on with one that an earlier call with the same key began.

    Args:
        path: The file; its folder also holds the journal, which the caller removes.
        frames: Rows of each video, in the order in which they are laid out.
        feature_size: Size D of a row.
        rows: Yields a video's rows.
        member: Name of the dataset in each video's group; None for no groups.
        attributes: Of the file.
        key: What determines the content.
        progress: Called with (videos written, videos) after each video.
    """
    partial, journal = path.with_name(f"{path.name}.partial"), path.with_name(JOURNAL)
    written = _written(journal, key) if partial.is_file() else None
    if written is None:
        journal.unlink(missing_ok=True)
        _lay_out(partial, frames, feature_size, member, attributes)
        journal.write_text(f"{key}\n", encoding="utf-8")
        written = set()
    places = _places(partial, frames, member)
    done = len(written)
    pending: list[str] = []
    size = 0
    with partial.open("rb+") as file, journal.open("a", encoding="utf-8") as names:

        def sync() -> None:
            os.fsync(file.fileno())
            names.write("".join(f"{video}\n" for video in pending))
            names.flush()
            pending.clear()

        for video in frames:
            if video in written:
                continue
            at = places[video]
            for block in rows(video):
                content = np.ascontiguousarray(block, dtype="<f4").reshape(-1).view(np.uint8).data
                done_bytes = 0
                while done_bytes < len(content):
                    done_bytes += os.pwrite(file.fileno(), content[done_bytes:], at + done_bytes)
                at += len(content)
                size += len(content)
            pending.append(video)
            if size >= SYNC_BYTES:
                sync()
                size = 0
            done += 1
            if progress is not None:
                progress(done, len(frames))
        sync()
    partial.replace(path)


def _lay_out(
    path: Path, frames: Mapping[str, int], feature_size: int, member: str | None, attributes: Mapping[str, Any]
) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    with h5py.File(path, "w", libver="earliest") as file:
        for name, value in attributes.items():
            file.attrs[name] = value
        for video, count in frames.items():
            place = file.create_group(video, track_order=False) if member else file
            space = h5py.h5s.create_simple((count, feature_size))
            h5py.h5d.create(place.id, (member or video).encode(), h5py.h5t.IEEE_F32LE, space, plan).close()
    with path.open("rb+") as written:
        os.fsync(written.fileno())


def _places(path: Path, frames: Mapping[str, int], member: str | None) -> dict[str, int]:
    """Returns where in the file each video's rows begin."""
    with h5py.File(path, "r") as file:
        return {video: file[f"{video}/{member}" if member else video].id.get_offset() for video in frames}


def _written(journal: Path, key: str) -> set[str] | None:
    """Returns the videos whose rows are on disk; None if the journal belongs to another content."""
    try:
        lines = journal.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return set(lines[1:-1]) if lines[0] == key else None
