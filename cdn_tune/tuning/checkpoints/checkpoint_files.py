"""The checkpoint files of a search on disk: kept ones in `best/`, those of trials, and how many bytes they take."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from cdn_tune.errors import CheckpointError, RunError
from cdn_tune.training.object_store.working_copy import delete_remote
from cdn_tune.training.runs.checkpoint import BEST
from cdn_tune.training.runs.kept import CHECKPOINT, KEPT, KeptRecord, check_kept, keep_checkpoint, kept_folder
from cdn_tune.tuning.checkpoints.remote_checkpoints import remote_checkpoints
from cdn_tune.tuning.layout import TRIALS, trial_folder

SCRATCH = ".ray"  # Ray Train's, in the trial folders of older runs


class CheckpointFiles:
    """What `Retention` does to the files of a run folder, and of its object store where it has one.

    Args:
        run: The run folder; only one process may change it.
    """

    def __init__(self, run: Path) -> None:
        self._run, self._remote = run, remote_checkpoints(run)

    def begin(self, number: int) -> None:
        """Deletes the folder of a new trial: it belongs to one whose record was lost with its machine."""
        shutil.rmtree(trial_folder(self._run, number), ignore_errors=True)
        delete_remote(trial_folder(self._run, number))

    def secure(self, number: int, value: float, epoch: int | None) -> KeptRecord:
        """Keeps a trial's best checkpoint, durably, unless it is kept already, and checks that it can be read.

        Args:
            number: The trial.
            value: Its best val metric in the study.
            epoch: The epoch of that, if recorded.

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
        """Deletes the checkpoints of a trial that has ended.

        Args:
            number: The trial.
            damaged: Whether its best checkpoint cannot be read; that one then stays for a person to look at.
        """
        folder = trial_folder(self._run, number)
        if (folder / SCRATCH).exists():
            shutil.rmtree(folder / SCRATCH, ignore_errors=True)
        if damaged:
            for path in (folder / BEST.parent).glob("*"):
                if path.name != BEST.name:
                    path.unlink(missing_ok=True)
        elif (folder / BEST.parent).exists():
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
