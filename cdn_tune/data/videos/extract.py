"""Extraction: the features of videos as one HDF5 file, which the loaders read and which tells how they were made.

Each video's rows are written to a file of their own, under ``.NAME.extracting`` beside the target; then all of them,
with the videos that the target had, to a new one. An extraction goes on from the files that a killed one leaves behind.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from filelock import FileLock

from cdn_tune.data.features import Frames
from cdn_tune.data.files import Progress, available_cpus, brief, clear_left, is_remote, writing_to, written_whole
from cdn_tune.data.fingerprint import PLANTED_ATTRIBUTE, mark_beside
from cdn_tune.data.hdf5 import UNREADABLE, check_dataset, find, open_features
from cdn_tune.data.mark import Mark, to_mark
from cdn_tune.data.videos.backbones import Backbone, WindowError, open_backbone
from cdn_tune.data.videos.decode import VIDEO_SUFFIXES
from cdn_tune.data.videos.devices import devices_of, reading_threads
from cdn_tune.data.videos.making import MOST_FPS, Making, making_of, write_making
from cdn_tune.data.videos.rows import compute_rows
from cdn_tune.data.videos.workers import Recipe, run_workers
from cdn_tune.errors import ConfigError, DataError

FPS = 2.0
_LOCK = ".lock"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+:/")  # a path has one slash of the two
_PARTS = 1000  # of a video, in which progress is counted
_BYTES = "cdn_tune_video_bytes"  # attribute of a dataset: the size of the video that it was computed from


@dataclass(frozen=True)
class Extracted:
    """A finished extraction.

    Attributes:
        path: The HDF5 file; it exists if it holds any video.
        making: How its features were made.
        videos: How many it holds.
        held: How many of them the file had before.
        computed: How many of them were computed now; the others had been by a call that was interrupted.
        size: Feature size D; 0 without videos.
        failed: Of each video that has no features, in one line, why.
    """

    path: Path
    making: Making
    videos: int
    held: int
    computed: int
    size: int
    failed: tuple[str, ...]


def making_with(backbone: Backbone, fps: float) -> Making:
    """Returns how a backbone makes features, at some rows a second."""
    return Making(
        backbone.name, backbone.digest, float(fps), backbone.window, backbone.stride, backbone.size, backbone.versions
    )


def extract_features(
    video: Path, making: Making, weights: Path | None = None, device: torch.device | str | None = None
) -> Frames:
    """Returns the features of a video, float32 [N, D], made as others were.

    Args:
        video: The video.
        making: How the others were made.
        weights: A file of the backbone's weights; those of its library if None.
        device: Where they are computed; a GPU if there is one and None is given.

    Raises:
        ConfigError: If there is no such backbone, or its library is missing.
        DataError: If the weights are not those of `making`, it is none of this backbone, or the video cannot be used.
    """
    try:
        backbone = open_backbone(making.backbone, weights, device, making.window)
    except WindowError:
        raise DataError(
            f"features of {making} cannot be made, as the backbone takes no such window; extract them anew"
        ) from None
    if differs := making.differences(making_with(backbone, making.fps)):
        raise DataError(
            f"{weights or making.backbone}: features would be made otherwise ({differs} here); name the file of the "
            "weights that they were extracted with: --weights FILE"
        )
    found: list[Frames | str] = []
    left = iter([video])
    compute_rows(backbone, making.fps, lambda: next(left, None), lambda *_: None, lambda _, rows: found.append(rows))
    if isinstance(found[0], str):
        raise DataError(found[0])
    return found[0]


def extract(
    videos: Sequence[Path],
    out: Path,
    backbone: str,
    *,
    weights: Path | None = None,
    fps: float = FPS,
    window: int | None = None,
    device: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Extracted:
    """Writes the features of videos as one HDF5 file with a dataset [N, D] of float32 per video, named as its file is.

    Videos that the file has already, of the same making, stay as they are and are not computed again. A video that
    cannot be used, or whose name the file has for a video of another size in bytes, is left out, with the reason in the
    result. The file appears, or changes, when all else is there.

    Args:
        videos: The videos (see `decode.find_videos`).
        out: The file.
        backbone: Name (see `open_backbone`).
        weights: A file of its weights.
        fps: Rows a second.
        window: Frames of a row, for backbones that see windows.
        device: Where to compute; ``cuda`` stands for all GPUs, and is chosen if there is one and None is given.
        workers: Processes; the CPU cores if None, or the GPUs.
        progress: Called with (parts done, parts).

    Raises:
        ConfigError: If an argument is wrong, or a library is missing.
        DataError: If the file holds features of another making, or cannot be written; the weights cannot be used.
    """
    out = _checked_out(Path(out).expanduser())
    if not 0 < fps <= MOST_FPS:
        raise ConfigError(f"--fps {fps:g}: must be above 0 and at most {MOST_FPS:g}")
    named, failed = _named(videos)
    devices = devices_of(device, workers, len(named))
    opened = open_backbone(backbone, weights, devices[0] if len(devices) == 1 else "cpu", window)
    making = making_with(opened, fps)
    staging = out.with_name(f".{out.name}.extracting")
    with writing_to(out, "is extracting to it; wait for it"):
        held = _held(out, making)
        staging.mkdir(parents=True, exist_ok=True)
        with FileLock(staging / _LOCK, timeout=0):
            held = _held(out, making)  # another process may have written it meanwhile
            for name, path in named.items():
                if held.get(name) not in (None, path.stat().st_size):
                    failed[path] = (
                        f"{path}: {out} has features of another video of this name; rename this one, or extract all to "
                        "a new file"
                    )
            parts = {path: _part(staging, path, making) for name, path in named.items() if name not in held}
            sizes = {path.stem: path.stat().st_size for path in parts}
            left = [path for path, part in parts.items() if not part.is_file()]
            share = dict.fromkeys(left, 0.0)

            def computed(path: Path, done: float) -> None:
                share[path] = done
                if progress is not None:
                    progress(round(_PARTS * (len(named) - len(left) + sum(share.values()))), _PARTS * len(named))

            def is_lost(path: Path, reason: str) -> None:
                failed[path] = reason
                computed(path, 1.0)

            keep = partial(_keep, parts)
            if left and len(devices) == 1:
                remaining = iter(left)
                readers, decoders = reading_threads(devices)
                finished = _finishing(keep, computed, is_lost)
                compute_rows(opened, fps, lambda: next(remaining, None), computed, finished, readers, decoders)
            elif left:
                del opened
                threads = max(1, available_cpus() // len(devices))
                recipe = Recipe(backbone, weights, making.window, fps, threads, *reading_threads(devices))
                run_workers(left, recipe, devices[: len(left)], keep, computed, is_lost)
            done = {path.stem: part for path, part in parts.items() if part.is_file()}
            marks = (mark_beside(path) for path in named.values() if not is_remote(path))
            mark: Mark = next((each for each in marks if each), False)
            size = _assemble(out, held, done, sizes, making, mark)
            for part in parts.values():
                part.unlink(missing_ok=True)
            clear_left(staging)
            if {path.name for path in staging.iterdir()} <= {_LOCK}:  # else another extraction was killed
                (staging / _LOCK).unlink()
                staging.rmdir()
    reasons = tuple(failed[path] for path in sorted(failed, key=str))
    computed_now = sum(path not in failed for path in left)
    return Extracted(out, making, len(held) + len(done), len(held), computed_now, size, reasons)


def _checked_out(out: Path) -> Path:
    """Returns the path of a file to write, or to add to; raises `ConfigError` if it is none."""
    if _URL.match(str(out)):
        raise ConfigError(f"OUT {out}: is a URL; name a file of this machine, and copy it there afterwards")
    if out.is_dir():
        raise ConfigError(f"OUT {out}: is a folder; name another OUT, such as {out / 'features.hdf5'}")
    if out.suffix.lower() in VIDEO_SUFFIXES:
        raise ConfigError(f"OUT {out}: is a video by its name; name another OUT, after the videos")
    if out.is_file() and not h5py.is_hdf5(out):
        raise ConfigError(f"OUT {out}: is there and no HDF5 file; name another OUT")
    return out


def _named(videos: Sequence[Path]) -> tuple[dict[str, Path], dict[Path, str]]:
    """Returns videos by the names that they get, and those that cannot get one, each with the reason."""
    counts = Counter(path.stem for path in videos)
    first = {path.stem: path for path in reversed(videos)}
    failed = {}
    for path in videos:
        if counts[path.stem] > 1:
            other = next(each for each in videos if each.stem == path.stem and each != path)
            failed[path] = f"{path}: has the same name as {other}; rename one of them, as features are named by videos"
        elif not path.stem.strip(".") or not path.stem.isprintable():
            failed[path] = f"{path}: has a name that no dataset could have; rename it"
    return {name: path for name, path in first.items() if path not in failed}, failed


def _finishing(keep: Any, computed: Any, failed: Any) -> Any:
    """Returns what is called with the rows of a video, or with the reason why it has none."""

    def finished(path: Path, found: Frames | str) -> None:
        if isinstance(found, str):
            failed(path, found)
        else:
            keep(path, found)
            computed(path, 1.0)

    return finished


def _keep(parts: dict[Path, Path], path: Path, rows: Frames) -> None:
    """Stores the rows of a video as a file of their own."""
    with written_whole(parts[path]) as unnamed, unnamed.open("wb") as file:
        np.save(file, rows)


def _part(staging: Path, path: Path, making: Making) -> Path:
    """Returns the path of a video's rows; another one when the video or the making changes."""
    stat = path.stat()
    facts = [path.stem, stat.st_size, stat.st_mtime, replace(making, versions={}).plain()]
    return staging / f"{hashlib.sha256(json.dumps(facts).encode(errors='surrogateescape')).hexdigest()[:32]}.npy"


def _held(out: Path, making: Making) -> dict[str, int | None]:
    """Returns the videos that a file has already, and how many bytes each had if it tells.

    Raises:
        DataError: If they are of another making.
    """
    if not out.exists():
        return {}
    with open_features(out) as file:
        held = making_of(file, str(out))
        if held is None:
            raise DataError(f"{out}: does not tell how its features were made; name a new file, not to mix them")
        if differs := held.differences(making):
            raise DataError(
                f"{out}: its features were made otherwise ({differs} here); name a new file, not to mix them"
            )
        return {video: _bytes_of(find(file, video, f"{out}: video {video!r}")) for video in file}


def _bytes_of(entry: Any) -> int | None:
    """Returns the size of the video that a dataset was computed from, None if it does not say."""
    try:
        kept = entry.attrs.get(_BYTES)
    except (*UNREADABLE, AttributeError):
        return None
    return int(kept) if isinstance(kept, np.integer) else None


def _assemble(
    out: Path,
    held: Collection[str],
    parts: dict[str, Path],
    bytes_of: Mapping[str, int],
    making: Making,
    mark: Mark,
) -> int:
    """Writes the HDF5 file of the videos that it had and of new ones, verified; returns the feature size."""
    sizes: set[int] = set()
    if not parts:
        return _size_of(out, held)
    try:
        with written_whole(out) as unnamed:
            with h5py.File(unnamed, "w", libver="earliest") as file:
                write_making(file, making)
                if held:
                    with open_features(out) as before:
                        mark = mark or to_mark(before.attrs.get(PLANTED_ATTRIBUTE))
                        for video in held:
                            where = f"{out}: video {video!r}"
                            check_dataset(find(before, video, where), where)
                            before.copy(video, file)
                for video, part in parts.items():
                    rows = np.load(part, allow_pickle=False)
                    sizes.add(rows.shape[1])
                    dataset = file.create_dataset(video, data=rows, track_times=False)
                    write_making(dataset, making)
                    dataset.attrs[_BYTES] = bytes_of[video]
                if mark:
                    file.attrs[PLANTED_ATTRIBUTE] = mark
            with h5py.File(unnamed, "r") as file:
                for video, part in parts.items():
                    if not np.array_equal(file[video][()], np.load(part, mmap_mode="r")):
                        raise DataError(
                            f"{out}: video {video!r} reads back otherwise than it was written; check the disk, "
                            "run it again"
                        )
    except OSError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{out}: cannot be written ({brief(error)}); run the same command again") from None
    return sizes.pop()


def _size_of(out: Path, held: Collection[str]) -> int:
    """Returns the feature size of a file that may have videos."""
    if not held:
        return 0
    with open_features(out) as file:
        video = min(held)
        where = f"{out}: video {video!r}"
        entry = find(file, video, where)
        check_dataset(entry, where)
        return int(entry.shape[-1])
