"""Converting: each video's rows into a file of its own, in parallel, then all of them into one HDF5 file.

The files of single videos (under ``.NAME.converting`` beside the target) are what a killed conversion leaves behind and
the next one goes on from. The target gets its name when it is complete, verified and on disk.
"""

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from filelock import FileLock, Timeout

from cdn_tune.data.clip_builder import available_cpus
from cdn_tune.data.convert.raw import FORMS, Rows, read_rows
from cdn_tune.data.files import written_whole
from cdn_tune.errors import DataError

Progress = Callable[[int, int], None]


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
    source: Path, out: Path, form: str, workers: int | None = None, progress: Progress | None = None
) -> Converted:
    """Writes raw features as one HDF5 file with a dataset [N, D] of float32 per video.

    Needs disk space for the features twice until it is done, and memory for one video per worker.

    Args:
        source: Folder of the raw features.
        out: The file to write; must not exist.
        form: Which form they have, a key of `FORMS`.
        workers: Processes that read; the CPU cores if None.
        progress: Called with (videos read, videos).

    Raises:
        DataError: If something is wrong with an argument, a file or the disk; nothing is left under the name `out`.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    if form not in FORMS:
        raise DataError(f"form {form!r} is unknown; choose one of {', '.join(FORMS)}")
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; name the folder of the raw features")
    if out.exists():
        raise DataError(f"{out}: exists already; delete it or choose another name")
    videos = FORMS[form].files(source)
    if not videos:
        raise DataError(f"{source}: no features of the form {form}: {FORMS[form].about}; choose another form")
    if empty := [video for video, files in videos.items() if not files]:
        raise DataError(f"{source / empty[0]}: no feature files of this video; extract them or remove the folder")
    staging = out.with_name(f".{out.name}.converting")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with FileLock(staging / ".lock", timeout=0):
            done = _read_all(videos, staging, workers or available_cpus(), progress)
            size = _assemble(videos, staging, out)
        shutil.rmtree(staging)
    except Timeout:
        raise DataError(f"{out}: another process is converting to it; wait for it") from None
    except OSError as error:
        fault = error.strerror or " ".join(str(error).split())
        raise DataError(f"{out}: cannot be written ({fault}); free space and run the same command again") from None
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
    """Returns where a video's rows are kept; another place when its files change."""
    facts = [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    return staging / f"{hashlib.sha256(json.dumps([video, facts]).encode()).hexdigest()[:32]}.npy"


def _assemble(videos: dict[str, list[Path]], staging: Path, out: Path) -> int:
    """Writes the HDF5 file, verifies it, and names it; returns the feature size."""
    size = 0

    def rows_of(video: str) -> Rows:
        rows: Rows = np.load(_part(staging, video, videos[video]), mmap_mode="r", allow_pickle=False)
        return rows

    with written_whole(out) as partial:
        with h5py.File(partial, "w", libver="earliest") as file:
            for video in videos:
                rows = rows_of(video)
                if size and rows.shape[1] != size:
                    raise DataError(
                        f"{videos[video][0]}: {video!r} has vectors of size {rows.shape[1]}, the others of {size}; "
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
