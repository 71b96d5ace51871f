"""The files of a run between its working copy and its home; trials look after their own (see `trial_home`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from cdn_tune.errors import RunError
from cdn_tune.training.object_store.fencing import LOCK as TRAINING
from cdn_tune.training.object_store.fencing import POSITION
from cdn_tune.training.object_store.lease import is_locked
from cdn_tune.training.object_store.store import Entry
from cdn_tune.training.object_store.working_copy import Place, place_of, url_of, working_copy
from cdn_tune.training.runs.files import write_json

MANIFEST = "manifest.json"
BEST_OF_TRAIN = "checkpoints/best.pt"
_INDEX = "index.json"
_MODEL = re.compile(r"(.*/)?(best|checkpoint)\.pt")
_TRIAL = re.compile(r"trials/[^/]+/(metrics\.jsonl|error\.txt|tensorboard/.*)")
# Brought home by those who train: the folder of a train run is a trial's.
_TRIALS_FILES = re.compile(r"trials/.*|checkpoints/.*|metrics\.jsonl|tensorboard/.*|.*/(last|previous)\.pt")
_AT_ONCE = 8


class Mirror:
    """Brings a working copy in line with its home, and what was changed in it home.

    Which version of a file is on this machine is noted beside the working copy, by its size and time here and at home.

    Args:
        place: The run folder.
    """

    def __init__(self, place: Place) -> None:
        self._home, self._root = place.home, place.root
        self._path = place.root.parent / _INDEX
        self._index: dict[str, list[list[int]]] = {}
        with suppress(OSError, ValueError):
            self._index = json.loads(self._path.read_text(encoding="utf-8"))

    def pull(self, models: bool = False, trials: bool = False, to_work: bool = False) -> None:
        """Fetches what home has and this machine has not, or has in another version.

        Args:
            models: Also the best checkpoints.
            trials: Also the trials' metrics and curves.
            to_work: For a command that holds the run: what trials look after is left to them.

        Raises:
            RunError: If the store cannot be reached.
        """
        self._home.check()
        manifest = self._home.read(MANIFEST)
        mine = self._root / MANIFEST
        if mine.exists() and mine.read_bytes() != manifest:
            self._forget()  # of another run that was at this URL
        entries = self._home.entries(deep=models or trials)
        left_alone = _TRIALS_FILES if to_work else self._trained_here()
        wanted = {
            name: entry
            for name, entry in entries.items()
            if _is_wanted(name, models, trials) and not left_alone.fullmatch(name)
        }
        for name in self._index.keys() - entries.keys():
            if _is_wanted(name, models, trials) and not left_alone.fullmatch(name):
                (self._root / name).unlink(missing_ok=True)
                del self._index[name]
        stale = [name for name, entry in wanted.items() if not self._is_here(name, entry)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: self._home.download(name, self._root / name), stale))
        if BEST_OF_TRAIN in stale:  # it may be of another state than the last one that lies here
            (self._root / POSITION).unlink(missing_ok=True)
        for name in stale:
            if (self._root / name).exists():
                self._note(name, wanted[name])
        self._write_index()

    def push(self) -> None:
        """Brings home what has changed here, checkpoints after what describes them.

        Raises:
            RunError: If the store cannot be reached.
        """
        changed = False
        for name in sorted(self._files(), key=lambda name: (name != MANIFEST, name.endswith(".pt"), name)):
            with suppress(FileNotFoundError):
                before = self._version(name)
                if name in self._index and self._index[name][0] == before:
                    continue
                entry = self._home.upload(self._root / name, name)
                self._index[name] = [before, [entry.size, entry.changed]]
                changed = True
        if changed:
            self._write_index()

    def drop(self, folder: str) -> None:
        """Deletes a folder at home."""
        self._home.delete_folder(folder)
        for name in [name for name in self._index if name.startswith(f"{folder}/")]:
            del self._index[name]
        self._write_index()

    def _trained_here(self) -> re.Pattern[str]:
        """Returns a pattern of the files of trials that are being trained on this machine."""
        busy = [
            re.escape(path.parent.relative_to(self._root).as_posix()) + "/.*"
            for path in self._root.glob(f"trials/*/{TRAINING}")
            if is_locked(path.parent, TRAINING)
        ]
        if is_locked(self._root, TRAINING):
            busy.append(_TRIALS_FILES.pattern)
        return re.compile("|".join(busy) or r"(?!)")

    def _files(self) -> Iterator[str]:
        for path in self._root.rglob("*"):
            name = path.relative_to(self._root).as_posix()
            hidden = any(part.startswith(".") for part in name.split("/"))
            if not hidden and not _TRIALS_FILES.fullmatch(name) and path.is_file():
                yield name

    def _is_here(self, name: str, entry: Entry) -> bool:
        noted = self._index.get(name)
        return noted is not None and noted[1] == [entry.size, entry.changed] and (self._root / name).exists()

    def _note(self, name: str, entry: Entry) -> None:
        self._index[name] = [self._version(name), [entry.size, entry.changed]]

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
    """Returns the folder in which a run is worked on, brought in line with its home if that is an object store.

    A command that works on the run on this machine holds its working copy; then that is newer than its home, and left
    alone.

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
        Mirror(place).pull(models, trials)
    return folder


def refresh(folder: Path) -> None:
    """Fetches what others have brought home of the run that this process holds; does nothing where it is at home."""
    place = place_of(folder)
    if place is not None:
        Mirror(place).pull()


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
    if place is not None and not place.home.download("", file / "file"):
        raise RunError(f"{place.home.shown}: no such file")
    return file / "file"


def bring_home(path: Path) -> None:
    """Brings home what has changed in the run that a path belongs to; does nothing where that has no other home."""
    place = place_of(path)
    if place is not None:
        Mirror(place).push()


def _is_wanted(name: str, models: bool, trials: bool) -> bool:
    if any(part.startswith(".") for part in name.split("/")):
        return False
    if name.startswith("trials/"):
        return trials and _TRIAL.fullmatch(name) is not None
    if name.endswith(".pt"):
        return models and _MODEL.fullmatch(name) is not None
    return models or trials or "/" not in name
