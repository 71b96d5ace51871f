"""Kept checkpoints of a search in an object store: fetched from its trials, uploaded, deleted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from cdn_tune.training.object_store.sync import RunSync
from cdn_tune.training.object_store.trial_sync import ATTEMPT
from cdn_tune.training.object_store.working_copy import Place, place_of
from cdn_tune.training.runs.checkpoint import BEST
from cdn_tune.training.runs.kept import KEPT, kept_folder
from cdn_tune.tuning.layout import TRIALS, trial_folder

_ENDED = b"ended"


class RemoteCheckpoints:
    """The kept and the trials' checkpoints of a run in its object store.

    Args:
        place: The run folder.
    """

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
        if (folder / BEST).parent.exists():
            shutil.rmtree((folder / BEST).parent, ignore_errors=True)

    def collect(self, kept: Collection[int], spared: Collection[int], ended: Collection[int]) -> None:
        """Deletes what dead processes have left there.

        Args:
            kept: Trials whose checkpoints are kept.
            spared: Trials of which nothing is deleted.
            ended: Trials that need no checkpoints of their own any more.
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


def remote_checkpoints(run: Path) -> RemoteCheckpoints | None:
    """Returns a run's checkpoints in its object store; None if the run folder is all there is."""
    place = place_of(run)
    return None if place is None else RemoteCheckpoints(place)


def _number(folder: str) -> int:
    digits = folder.removeprefix("trial-")
    return int(digits) if digits.isdigit() else -1
