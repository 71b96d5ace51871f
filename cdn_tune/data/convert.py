"""Conversion: raw features, as datasets distribute them, or another HDF5 file, to the HDF5 file that the loaders read.

Each video's rows are written to a file of their own (under ``.NAME.converting`` beside the target), in parallel, then
all of them to one HDF5 file. A conversion goes on from the files that a killed one leaves behind; one from HDF5 copies
video by video and begins anew. The target gets its name when it is complete, verified and on disk.
"""

import hashlib
import json
import multiprocessing
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock

from cdn_tune.data.files import Progress, available_cpus, brief, writing_to, written_whole
from cdn_tune.data.hdf5 import UNREADABLE, check_dataset, find, open_features
from cdn_tune.data.video_names import annotated_videos, match_names
from cdn_tune.data.videos.making import Making, read_making, write_making
from cdn_tune.errors import DataError

Rows = npt.NDArray[np.float32]
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    EOFError,
    MemoryError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)
_WINDOW = re.compile(r"(?P<video>.+?)_(?P<first>\d+)(?:_(?P<last>\d+))?")


@dataclass(frozen=True)
class Form:
    """One way in which raw features come.

    Attributes:
        about: Its files and their content, for errors.
        files: The files of each video in a folder, in the order of its rows; None where the source is an HDF5 file.
    """

    about: str
    files: Callable[[Path], dict[str, list[Path]]] | None


def charades_files(source: Path) -> dict[str, list[Path]]:
    """Returns the text files of each video's folder, ordered by the numbers in their names."""
    folders = (folder for folder in sorted(source.iterdir()) if folder.is_dir() and not folder.name.startswith("."))
    return {folder.name: sorted(folder.glob("*.txt"), key=_natural) for folder in folders}


def window_files(source: Path) -> dict[str, list[Path]]:
    """Returns the ``VIDEO_FIRST_LAST.npy`` (or ``VIDEO_FIRST.npy``) files of each video, ordered by first frame.

    They may lie in one folder or in a folder per video.

    Raises:
        DataError: If a name has no window.
    """
    files: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(source.rglob("*.npy")):
        match = _WINDOW.fullmatch(path.stem)
        if match is None:
            raise DataError(f"{path}: no window in its name; name it VIDEO_FIRSTFRAME_LASTFRAME.npy")
        files.setdefault(match["video"], []).append((int(match["first"]), path))
    return {video: [path for _, path in sorted(some)] for video, some in sorted(files.items())}


def array_files(source: Path) -> dict[str, list[Path]]:
    """Returns the one ``.npy``, ``.npz`` or ``.pt`` file of each video, named after it.

    Raises:
        DataError: If a video has two.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(path for path in source.iterdir() if path.suffix in {".npy", ".npz", ".pt"}):
        if path.stem in files:
            raise DataError(f"{path}: video {path.stem!r} also has {files[path.stem][0].name}; remove one of them")
        files[path.stem] = [path]
    return files


FORMS: dict[str, Form] = {
    "charades_vgg": Form("a folder per video of text files, a vector each (Charades VGG)", charades_files),
    "tacos_c3d": Form("VIDEO_FIRST_LAST.npy, a vector per window (TACoS C3D)", window_files),
    "arrays": Form("VIDEO.npy, VIDEO.npz or VIDEO.pt, an array [rows, size] per video", array_files),
    "hdf5": Form("an HDF5 file with an array per video, [rows, size] but for axes of length 1", None),
}


def read_rows(files: list[Path]) -> Rows:
    """Returns the rows of a video, float32 [N, D], of the files that hold them, in their order.

    Raises:
        DataError: If there is none, one cannot be read, their sizes differ, or a value is not finite.
    """
    parts: list[Rows] = []
    for path in files:
        part = _read(path)
        if part.ndim == 1:
            part = part[None]
        if part.ndim != 2 or not part.size:
            raise DataError(f"{path}: has shape {list(part.shape)}; expected [rows, size] with at least one row")
        if parts and part.shape[1] != parts[0].shape[1]:
            raise DataError(
                f"{path}: has vectors of size {part.shape[1]}, {files[0].name} of {parts[0].shape[1]}; extract it again"
            )
        with np.errstate(over="ignore"):
            part = part.astype(np.float32, copy=False)
        if not np.isfinite(part).all():
            row = int(np.argwhere(~np.isfinite(part))[0][0])
            raise DataError(f"{path}: a value in row {row} is not finite; extract it again")
        parts.append(part)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _read(path: Path) -> npt.NDArray[np.floating]:
    values: npt.NDArray[np.floating]
    try:
        if path.suffix == ".txt":
            values = np.array(path.read_text(encoding="utf-8-sig").split(), dtype=np.float32)
        elif path.suffix == ".pt":
            values = torch.as_tensor(torch.load(path, map_location="cpu", weights_only=True)).float().numpy()
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                if len(arrays.files) != 1:
                    raise DataError(f"{path}: holds {len(arrays.files)} arrays ({', '.join(arrays.files)}); keep one")
                values = arrays[arrays.files[0]]
        else:
            values = np.load(path, allow_pickle=False)
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({brief(error, 120)}); copy or extract it again") from None
    if values.dtype.kind not in "fiu":
        raise DataError(f"{path}: holds {values.dtype} values; expected floats")
    return values


def _natural(path: Path) -> list[tuple[int, str]]:
    """Returns a sort key that orders numbers in names by value: frame 10 comes after frame 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


@dataclass(frozen=True)
class Converted:
    """A finished conversion.

    Attributes:
        path: The HDF5 file.
        videos: How many it holds.
        resumed: How many of them an earlier, interrupted conversion had read.
        size: Feature size D.
    """

    path: Path
    videos: int
    resumed: int
    size: int


def convert(
    source: Path,
    out: Path,
    form: str,
    workers: int | None = None,
    progress: Progress | None = None,
    *,
    feature_size: int | None = None,
    names_of: Path | None = None,
) -> Converted:
    """Writes raw features as one HDF5 file with a dataset [N, D] of float32 per video.

    Needs disk space for the features twice until it is done (but for HDF5), and memory for one video per worker.

    Args:
        source: Folder of the raw features, or an HDF5 file.
        out: The file to write; must not exist.
        form: Which form they have, a key of `FORMS`.
        workers: Processes that read; the CPU cores if None.
        progress: Called with (videos read, videos).
        feature_size: D, where it is known: arrays [D, N] are turned.
        names_of: A data folder; videos get the names that its annotations have, where only case or a file suffix
            differs.

    Raises:
        DataError: If something is wrong with an argument, a file or the disk; nothing is left under the name `out`.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    if form not in FORMS:
        raise DataError(f"form {form!r} is unknown; choose one of {', '.join(FORMS)}")
    files = FORMS[form].files
    if files is not None and not source.is_dir():
        raise DataError(f"{source}: no such folder; name the folder of the raw features")
    if out.exists():
        raise DataError(f"{out}: exists already; delete it or choose another name")
    wanted = set() if names_of is None else annotated_videos(names_of)
    writing = writing_to(out, "is converting to it; wait for it", "free space")
    if files is None:
        with writing:
            out.parent.mkdir(parents=True, exist_ok=True)
            return _rewrite(source, out, wanted, feature_size, progress)
    videos = _renamed(files(source), wanted)
    if not videos:
        raise DataError(f"{source}: no features of the form {form}: {FORMS[form].about}; choose another form")
    if empty := [video for video, files in videos.items() if not files]:
        raise DataError(f"{source / empty[0]}: no feature files of this video; extract them or remove the folder")
    staging = out.with_name(f".{out.name}.converting")
    with writing:
        staging.mkdir(parents=True, exist_ok=True)
        with FileLock(staging / ".lock", timeout=0):
            done = _read_all(videos, staging, workers or available_cpus(), progress)
            size = _assemble(
                videos, lambda video: np.load(_part(staging, video, videos[video]), mmap_mode="r"), out, feature_size
            )
        shutil.rmtree(staging)
    return Converted(out, len(videos), done, size)


def _read_all(videos: dict[str, list[Path]], staging: Path, workers: int, progress: Progress | None) -> int:
    """Reads every video that is not read yet; returns how many were."""
    paths = {video: _part(staging, video, files) for video, files in videos.items()}
    kept = {path.name for path in paths.values()}
    for path in staging.iterdir():
        if path.name not in kept and path.name != ".lock":
            path.unlink()  # of a video that changed, or half written
    left = [video for video in videos if not paths[video].is_file()]
    before = done = len(videos) - len(left)
    if progress is not None:
        progress(done, len(videos))
    with _mapped(workers if len(left) > 1 else 1, [(videos[video], paths[video]) for video in left]) as finished:
        for _ in finished:
            done += 1
            if progress is not None:
                progress(done, len(videos))
    return before


@contextmanager
def _mapped(workers: int, jobs: list[tuple[list[Path], Path]]) -> Iterator[Iterator[Path]]:
    """Yields an iterator that runs the jobs, here or in processes of their own."""
    if workers == 1:
        yield (_read_one(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        tasks = [pool.submit(_read_one, files, part) for files, part in jobs]
        try:
            yield (task.result() for task in as_completed(tasks))
        finally:
            for task in tasks:
                task.cancel()


def _read_one(files: list[Path], part: Path) -> Path:
    rows = read_rows(files)
    with written_whole(part) as partial, partial.open("wb") as file:
        np.save(file, rows)
    return part


def _part(staging: Path, video: str, files: list[Path]) -> Path:
    """Returns the path of a video's rows; another one when its files change."""
    facts = [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    return staging / f"{hashlib.sha256(json.dumps([video, facts]).encode()).hexdigest()[:32]}.npy"


def _renamed(videos: dict[str, Any], wanted: set[str]) -> dict[str, Any]:
    """Returns the videos under the names that are wanted (see `match_names`)."""
    names = {present: name for name, present in match_names(wanted, videos).items()}
    return {names.get(video, video): content for video, content in videos.items()}


def _rewrite(
    source: Path, out: Path, wanted: set[str], feature_size: int | None, progress: Progress | None
) -> Converted:
    """Writes the videos of an HDF5 file as another."""
    with open_features(source) as file:
        videos = _renamed({video: video for video in file}, wanted)
        if not videos:
            raise DataError(f"{source}: holds no videos; name another file")
        done = 0

        def rows_of(video: str) -> Rows:
            nonlocal done
            done += 1
            if progress is not None and done <= len(videos):  # each is read again to be verified
                progress(done, len(videos))
            return _hdf5_rows(file, videos[video], f"{source}: video {videos[video]!r}")

        return Converted(out, len(videos), 0, _assemble(videos, rows_of, out, feature_size, read_making(source)))


def _hdf5_rows(file: Any, video: str, where: str) -> Rows:
    """Returns the rows of a video in an HDF5 file, without axes of length 1; of a group, those of all that it holds."""
    try:
        entry = find(file, video, where)
        if isinstance(entry, h5py.Group) and len(entry) == 1:
            entry = find(entry, next(iter(entry)), where)
        check_dataset(entry, where)
        shape = list(entry.shape)
        while len(shape) > 2 and shape[-1] == 1:
            shape.pop()
        while len(shape) > 2 and shape[0] == 1:
            shape.pop(0)
        if len(shape) != 2 or not all(shape):
            raise DataError(f"{where} has shape {list(entry.shape)}; expected [rows, size], extract it again")
        with np.errstate(over="ignore"):
            rows: Rows = entry[()].astype(np.float32, copy=False).reshape(shape)
    except UNREADABLE as error:
        raise DataError(f"{where} cannot be read ({brief(error)}); copy the file again") from None
    if not np.isfinite(rows).all():
        raise DataError(f"{where} has a value that is not finite; extract its features again")
    return rows


def _assemble(
    videos: Iterable[str],
    read: Callable[[str], Rows],
    out: Path,
    feature_size: int | None,
    making: Making | None = None,
) -> int:
    """Writes the HDF5 file, verifies it, and names it; returns the feature size."""
    size = feature_size or 0

    def rows_of(video: str) -> Rows:
        rows = read(video)
        return rows.T if feature_size == rows.shape[0] != rows.shape[1] else rows

    with written_whole(out) as partial:
        with h5py.File(partial, "w", libver="earliest") as file:
            if making is not None:
                write_making(file, making)
            for video in videos:
                rows = rows_of(video)
                if size and rows.shape[1] != size:
                    others = "the others of" if feature_size is None else "--feature-size is"
                    raise DataError(
                        f"{out}: {video!r} has vectors of size {rows.shape[1]}, {others} {size}; "
                        "extract it again or remove it"
                    )
                size = int(rows.shape[1])
                file.create_dataset(video, data=rows, track_times=False)
        with h5py.File(partial, "r") as file:
            for video in videos:
                if video not in file or not np.array_equal(file[video][()], rows_of(video)):
                    raise DataError(
                        f"{out}: video {video!r} reads back otherwise than it was written; check the disk, run it again"
                    )
    return size
