"""The files of a run between its working copy and its store; those of trials are handled by `trial_sync`."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from cdn_tune.data.files import read_json
from cdn_tune.errors import RunError
from cdn_tune.training.object_store.lease import is_locked
from cdn_tune.training.object_store.store import Entry
from cdn_tune.training.object_store.working_copy import POSITION, TRAINING_LOCK, Place, place_of, url_of, working_copy
from cdn_tune.training.runs.files import write_json

MANIFEST = "manifest.json"
_INDEX = "index.json"
_MODEL = re.compile(r"(.*/)?(best|checkpoint|start)\.pt")
_TRIAL = re.compile(r"trials/[^/]+/(metrics\.jsonl|error\.txt|tensorboard/.*)")
# Uploaded by the training processes: the folder of a train run is a trial's, too.
_TRIALS_FILES = re.compile(r"trials/.*|checkpoints/.*|metrics\.jsonl|tensorboard/.*|.*/(last|previous)\.pt")
_AT_ONCE = 8


class RunSync:
    """Fetches what has changed on the store into a working copy, and uploads what has changed in that.

    An index beside the working copy records each file's size and time, here and on the store.
    """

    def __init__(self, place: Place) -> None:
        self._store, self._root = place.store, place.root
        self._path = place.root.parent / _INDEX
        self._index: dict[str, list[list[int]]] = {}
        with suppress(OSError, ValueError):
            self._index = read_json(self._path)

    def pull(self, models: bool = False, trials: bool = False, to_work: bool = False) -> None:
        """Fetches what this machine lacks, or has in another version; deletes what the store has no more.

        Args:
            models: Also the best checkpoints.
            trials: Also the trials' metrics and curves.
            to_work: For a command that holds the run: the files that training processes upload are left alone.

        Raises:
            RunError: If the store cannot be reached.
        """
        self._store.check()
        manifest = self._store.read(MANIFEST)
        mine = self._root / MANIFEST
        if mine.exists() and mine.read_bytes() != manifest:
            self._forget()  # of another run that was at this URL
        entries = self._store.entries(deep=models or trials)
        left_alone = _TRIALS_FILES if to_work else self._trained_here()

        def is_wanted(name: str) -> bool:
            return _is_wanted(name, models, trials) and not left_alone.fullmatch(name)

        for name in filter(is_wanted, self._index.keys() - entries.keys()):
            (self._root / name).unlink(missing_ok=True)
            del self._index[name]
        stale = [name for name, entry in entries.items() if is_wanted(name) and not self._is_here(name, entry)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: self._store.download(name, self._root / name), stale))
        if "checkpoints/best.pt" in stale:  # it may be of another state than the last one here
            (self._root / POSITION).unlink(missing_ok=True)
        for name in stale:
            if (self._root / name).exists():
                self._record(name, self._version(name), entries[name])
        self._write_index()

    def push(self) -> None:
        """Uploads what has changed here, checkpoints after what describes them.

        Raises:
            RunError: If the store cannot be reached.
        """
        changed = False
        for name in sorted(self._files(), key=lambda name: (name != MANIFEST, name.endswith(".pt"), name)):
            with suppress(FileNotFoundError):
                before = self._version(name)
                if name in self._index and self._index[name][0] == before:
                    continue
                self._record(name, before, self._store.upload(self._root / name, name))
                changed = True
        if changed:
            self._write_index()

    def drop(self, folder: str) -> None:
        """Deletes a folder on the store."""
        self._store.delete_folder(folder)
        for name in [name for name in self._index if name.startswith(f"{folder}/")]:
            del self._index[name]
        self._write_index()

    def _trained_here(self) -> re.Pattern[str]:
        """Returns a pattern of the files of trials that are being trained on this machine."""
        busy = [
            re.escape(path.parent.relative_to(self._root).as_posix()) + "/.*"
            for path in self._root.glob(f"trials/*/{TRAINING_LOCK}")
            if is_locked(path.parent, TRAINING_LOCK)
        ]
        if is_locked(self._root, TRAINING_LOCK):
            busy.append(_TRIALS_FILES.pattern)
        return re.compile("|".join(busy) or r"(?!)")

    def _files(self) -> Iterator[str]:
        for path in self._root.rglob("*"):
            name = path.relative_to(self._root).as_posix()
            if not _is_hidden(name) and not _TRIALS_FILES.fullmatch(name) and path.is_file():
                yield name

    def _is_here(self, name: str, entry: Entry) -> bool:
        noted = self._index.get(name)
        return noted is not None and noted[1] == [entry.size, entry.changed] and (self._root / name).exists()

    def _record(self, name: str, version: list[int], entry: Entry) -> None:
        self._index[name] = [version, [entry.size, entry.changed]]

    def _version(self, name: str) -> list[int]:
        status = (self._root / name).stat()
        return [status.st_size, status.st_mtime_ns]

    def _forget(self) -> None:
        for path in sorted(self._root.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):
                    path.rmdir()
            elif path.name != ".lock":
                path.unlink(missing_ok=True)
        self._index.clear()

    def _write_index(self) -> None:
        write_json(self._path, self._index)


def fetched(run: Path | str, models: bool = False, trials: bool = False) -> Path:
    """Returns the folder in which a run is worked on, up to date with the store if the run is on one.

    A working copy that a command on this machine holds is newer than the store, and left alone.

    Args:
        run: A run folder or a URL.
        models: Whether the best checkpoints are needed.
        trials: Whether the trials' metrics are.

    Raises:
        CdnTuneError: If it is a wrong URL, or the store cannot be reached.
    """
    folder = working_copy(run)
    place = place_of(folder)
    if place is not None and not is_locked(place.root):
        RunSync(place).pull(models, trials)
    return folder


def refresh(folder: Path) -> None:
    """Fetches what others have uploaded of the run that this process holds; no-op if it is on no store."""
    place = place_of(folder)
    if place is not None:
        RunSync(place).pull()


def fetched_file(path: Path | str) -> Path:
    """Returns a file of a run, fetched if the path is a URL: that of the run, then the file's name in it.

    Raises:
        CdnTuneError: If it is a wrong URL, there is no such file, or the store cannot be reached.
    """
    url = url_of(path)
    if url is None:
        return Path(path)
    file = working_copy(url)
    place = place_of(file)
    if place is not None and not place.store.download("", file / "file"):
        raise RunError(f"{place.store.shown}: no such file")
    return file / "file"


def push_run(path: Path) -> None:
    """Uploads what has changed in the run that a path belongs to; no-op if it is on no store."""
    place = place_of(path)
    if place is not None:
        RunSync(place).push()


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _is_wanted(name: str, models: bool, trials: bool) -> bool:
    if _is_hidden(name):
        return False
    if name.startswith("trials/"):
        return trials and _TRIAL.fullmatch(name) is not None
    if name.endswith(".pt"):
        return models and _MODEL.fullmatch(name) is not None
    return models or trials or "/" not in name
