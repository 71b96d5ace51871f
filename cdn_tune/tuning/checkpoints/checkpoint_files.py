"""The checkpoint files of a search, on disk and in its object store: kept ones in `best/`, and those of trials."""

import contextlib
import os
import shutil
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from cdn_tune.errors import CheckpointError, RunError
from cdn_tune.training.object_store.sync import RunSync
from cdn_tune.training.object_store.trial_sync import ATTEMPT
from cdn_tune.training.object_store.working_copy import Place, delete_remote, place_of
from cdn_tune.training.runs.checkpoint import BEST
from cdn_tune.training.runs.kept import CHECKPOINT, KEPT, KeptRecord, check_kept, keep_checkpoint, kept_folder
from cdn_tune.tuning.layout import TRIALS, trial_folder

SCRATCH = ".ray"  # Ray Train's, in the trial folders of older runs
_ENDED = b"ended"


class CheckpointFiles:
    """The files of a run folder, which one process may change, and of its object store; `Retention` acts on them."""

    def __init__(self, run: Path) -> None:
        place = place_of(run)
        self._run, self._remote = run, None if place is None else RemoteCheckpoints(place)

    def begin(self, number: int) -> None:
        """Deletes the folder of a new trial: it belongs to one whose record was lost with its machine."""
        shutil.rmtree(trial_folder(self._run, number), ignore_errors=True)
        delete_remote(trial_folder(self._run, number))

    def secure(self, number: int, value: float, epoch: int | None) -> KeptRecord:
        """Keeps a trial's best checkpoint, durably, unless it is kept already, and checks that it can be read.

        `value` is its best val metric in the study, `epoch` that of it, if recorded.

        Raises:
            CheckpointError: If there is no sound checkpoint.
            RunError: If the disk is at fault; the file may be sound, so nothing may be deleted on account of it.
        """
        folder, source = kept_folder(self._run, number), trial_folder(self._run, number) / BEST
        reasons = []
        try:
            if (folder / CHECKPOINT).exists():
                try:
                    return check_kept(folder, number, value, epoch)
                except CheckpointError as error:
                    reasons.append(str(error))
            if self._remote is not None:
                source = self._remote.fetch(number)
            try:
                return keep_checkpoint(source, folder, number, value, epoch)
            except CheckpointError as error:
                reasons.append(str(error))
            finally:
                if self._remote is not None:
                    source.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"{folder}: its checkpoint cannot be read ({error.strerror}); mend the disk") from None
        raise CheckpointError("; ".join(reasons))

    def publish(self) -> None:
        """Uploads the kept checkpoints where the run has an object store."""
        if self._remote is not None:
            self._remote.keep()

    def drop(self, number: int) -> None:
        """Deletes a kept checkpoint."""
        shutil.rmtree(kept_folder(self._run, number), ignore_errors=True)
        if self._remote is not None:
            self._remote.drop(number)

    def clear(self, number: int, damaged: bool) -> None:
        """Deletes the checkpoints of a trial that has ended, except a damaged best one, which stays for inspection."""
        folder = trial_folder(self._run, number)
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
        if damaged:
            for path in (folder / BEST.parent).glob("*"):
                if path.name != BEST.name:
                    path.unlink(missing_ok=True)
        else:
            shutil.rmtree(folder / BEST.parent, ignore_errors=True)

    def clear_remote(self, numbers: Iterable[int]) -> None:
        """Deletes ended trials' checkpoints in the object store, if there is one."""
        if self._remote is not None:
            for number in numbers:
                self._remote.clear(number)

    def collect(self, kept: Collection[int], damaged: Collection[int], ended: Collection[int]) -> None:
        """Deletes what dead processes have left: kept folders of no kept trial, half-written ones, temporary files.

        A running trial tidies its own files when it is taken up. A kept checkpoint that cannot be read stays.
        """
        chosen = {kept_folder(self._run, number) for number in (*kept, *damaged)}
        for folder in (self._run / KEPT).glob("trial-*"):
            if folder not in chosen or not (folder / CHECKPOINT).exists():
                shutil.rmtree(folder, ignore_errors=True)
        folders = [kept_folder(self._run, number) for number in kept]
        for folder in (self._run, *folders, *(trial_folder(self._run, number) for number in ended)):
            for path in folder.glob(".*.tmp"):
                if f".{os.getpid()}." not in path.name:  # not one that this process is writing
                    path.unlink(missing_ok=True)
        if self._remote is not None:
            self._remote.collect(kept, damaged, ended)

    def size(self, number: int) -> int:
        """Returns the bytes of a trial's best checkpoint."""
        for path in (kept_folder(self._run, number) / CHECKPOINT, trial_folder(self._run, number) / BEST):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_size
        return 0 if self._remote is None else self._remote.size(number)

    def taken(self, number: int) -> int:
        """Returns the bytes of a running trial's checkpoints."""
        return _bytes((trial_folder(self._run, number) / BEST).parent)

    def unreadable(self, numbers: Iterable[int]) -> int:
        """Returns the bytes of all files of trials whose kept checkpoint cannot be read."""
        folders = [(kept_folder(self._run, number), trial_folder(self._run, number)) for number in numbers]
        return _bytes(*(folder for pair in folders for folder in pair))

    def path(self, number: int) -> Path:
        """Returns a kept checkpoint's file."""
        return kept_folder(self._run, number) / CHECKPOINT


class RemoteCheckpoints:
    """The kept and the trials' checkpoints of a run in its object store."""

    def __init__(self, place: Place) -> None:
        self._place, self._store, self._run = place, place.store, place.root

    def fetch(self, number: int) -> Path:
        """Downloads a trial's best checkpoint; returns the file, which need not exist."""
        path = self._run / f".fetched-{number:04d}.{os.getpid()}.tmp"
        path.unlink(missing_ok=True)
        self._store.download(self._name(trial_folder(self._run, number) / BEST), path)
        return path

    def keep(self) -> None:
        """Uploads the kept checkpoints."""
        RunSync(self._place).push()

    def size(self, number: int) -> int:
        """Returns the bytes of a trial's best checkpoint there."""
        entry = self._store.entry(self._name(trial_folder(self._run, number) / BEST))
        return 0 if entry is None else entry.size

    def drop(self, number: int) -> None:
        """Deletes a kept checkpoint there."""
        RunSync(self._place).drop(self._name(kept_folder(self._run, number)))

    def clear(self, number: int) -> None:
        """Deletes the checkpoints of a trial that has ended; a process of it that lives on is fenced off."""
        folder = trial_folder(self._run, number)
        self._store.write(self._name(folder / ATTEMPT), _ENDED)
        self._store.delete_folder(self._name((folder / BEST).parent))
        shutil.rmtree((folder / BEST).parent, ignore_errors=True)

    def collect(self, kept: Collection[int], spared: Collection[int], ended: Collection[int]) -> None:
        """Deletes what dead processes have left there: kept folders of no kept trial, checkpoints of ended ones.

        Nothing of the `spared` trials is deleted.
        """
        names = self._store.entries()
        folders = {tuple(name.split("/")[:2]) for name in names if name.startswith(f"{KEPT}/")}
        for number, folder in ((_number(folder[1]), "/".join(folder)) for folder in folders):
            if number not in {*kept, *spared}:
                RunSync(self._place).drop(folder)
        checkpoints = str(BEST.parent)
        left = {name.split("/")[1] for name in names if name.startswith(f"{TRIALS}/") and f"/{checkpoints}/" in name}
        for name in left:
            if _number(name) in ended and _number(name) not in spared:
                self.clear(_number(name))

    def _name(self, path: Path) -> str:
        return path.relative_to(self._run).as_posix()


def _number(folder: str) -> int:
    digits = folder.removeprefix("trial-")
    return int(digits) if digits.isdigit() else -1


def disk_used(run: Path) -> int:
    """Returns the bytes of all checkpoints in a run folder; a file with several names counts once."""
    return _bytes(run / KEPT, *(run / TRIALS).glob("*/checkpoints"))


def _bytes(*folders: Path) -> int:
    """Returns the bytes of the files under folders, each inode once; files that vanish meanwhile count nothing."""
    sizes: dict[tuple[int, int], int] = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())
