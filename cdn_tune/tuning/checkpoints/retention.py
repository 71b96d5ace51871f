"""The checkpoint budget: across all trials the best few are kept; the weights of the others go once they have lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.errors import CheckpointError, RunError
from cdn_tune.training.loop import BEST
from cdn_tune.training.runs.kept import CHECKPOINT, KEPT, KeptRecord, check_kept, keep_checkpoint, kept_folder
from cdn_tune.tuning.checkpoints.remote_checkpoints import kept_home
from cdn_tune.tuning.layout import TRIALS, trial_folder
from cdn_tune.tuning.study.ranking import FINISHED, own, pareto_front, ranking, value_of

GB = 1e9
SCRATCH = ".ray"  # in a trial's folder; a group of workers leaves it when it is killed
_LATE = 16  # so many of the trials that ended last are looked at again: a worker being stopped may write once more


class Keeper:
    """Brings a run's checkpoints in line with its study, after every trial's end.

    Order makes it safe: what is to be kept is linked and flushed to disk before anything is deleted, so that the best
    checkpoint is readable whenever the process dies; the next `Keeper` tidies what a crash has left. The first call
    looks at every trial's folder, later ones only at what has changed.

    Args:
        run: The run folder; only one process may keep it.
        keep: How many trials keep their best checkpoint.
        budget: Bytes that all checkpoints may take, those of running trials included; None for no limit.
        directions: Of the objectives; with several, the Pareto front is kept before the ranking.
    """

    def __init__(
        self, run: Path, keep: int, budget: float | None = None, directions: Sequence[StudyDirection] = ()
    ) -> None:
        self.damaged: dict[int, str] = {}  # trials whose checkpoint could not be kept, and why
        self.records: dict[int, KeptRecord] = {}  # of the kept ones, best first
        self._run, self._keep, self._budget, self._directions = run, keep, budget, directions
        self._settled: set[int] = set()  # ended trials that were looked at
        self._front: set[int] = set()  # the Pareto front, kept or not: what it beats must not pass for optimal
        self._late: deque[int] = deque(maxlen=_LATE)
        self._reserved: dict[int, int] = {}
        self._begun = False
        self._home = kept_home(run)

    def tidy(self, trials: list[FrozenTrial]) -> list[Path]:
        """Keeps the best and clears away the rest.

        Args:
            trials: All trials of the study.

        Returns:
            The kept checkpoints, best first.

        Raises:
            RunError: If a checkpoint to be kept cannot be written or read; nothing was deleted then.
        """
        ended = [trial for trial in trials if trial.number not in self._settled and trial.state in FINISHED]
        if not ended and self._begun:
            return self._paths()
        by_number = {trial.number: trial for trial in trials}
        candidates = [by_number[number] for number in self.records if number in by_number] + ended
        order = self._order(candidates, by_number)
        room = None if self._budget is None else self._budget - self._held(trials)
        records: dict[int, KeptRecord] = {}
        for trial in order:
            if len(records) == self._keep:
                break
            size = self._size(trial.number)
            if room is not None and records and size > room:
                continue  # a smaller one further down may still fit
            record = self._secure(trial)
            if record is not None:
                records[trial.number] = record
                room = None if room is None else room - size
        losers = (self.records.keys() | {trial.number for trial in ended}) - records.keys() - self.damaged.keys()
        self.records = records
        if self._home is not None:
            self._home.keep()
        self._clear(ended, losers)
        if not self._begun and trials:
            self._collect(trials)
            self._begun = True
        return self._paths()

    def reserve(self, number: int, checkpoint_bytes: int) -> None:
        """Notes how many bytes a trial's checkpoints may come to take while it runs."""
        self._reserved[number] = checkpoint_bytes

    def fits(self, trials: list[FrozenTrial], checkpoint_bytes: int) -> bool:
        """Returns whether another trial may start now.

        While trials run, their end frees what they need and the kept checkpoints stay. With none running, kept ones
        give way from the last, never the best.

        Args:
            trials: All trials of the study.
            checkpoint_bytes: What its checkpoints may come to take.

        Raises:
            RunError: If it cannot fit even beside the best alone.
        """
        if self._budget is None:
            return True
        running = any(trial.state == TrialState.RUNNING for trial in trials)
        while (used := sum(map(self._size, self.records)) + self._held(trials)) + checkpoint_bytes > self._budget:
            if running:
                return False
            if len(self.records) < 2:
                raise RunError(
                    f"disk_budget_gb={self._budget / GB:g}: the next trial's checkpoints take up to "
                    f"{checkpoint_bytes / GB:.3g} GB beside {used / GB:.3g} GB of the best one; raise it to "
                    f"{(used + checkpoint_bytes) / GB:.3g}"
                )
            number, _ = self.records.popitem()
            self._drop(number)
        return True

    def _paths(self) -> list[Path]:
        return [kept_folder(self._run, number) / CHECKPOINT for number in self.records]

    def _order(self, candidates: list[FrozenTrial], by_number: dict[int, FrozenTrial]) -> list[FrozenTrial]:
        """Returns the candidates, best first; one that has lost before has no weights left and cannot come back."""
        ranked = ranking(candidates)
        if len(self._directions) < 2:
            return ranked
        known = {trial.number: trial for trial in candidates}
        known |= {number: by_number[number] for number in self._front if number in by_number}
        front = pareto_front(known.values(), self._directions)
        self._front = {trial.number for trial in front}
        numbers = {trial.number for trial in candidates}
        first = [trial for trial in front if trial.number in numbers]
        return [*first, *(trial for trial in ranked if trial.number not in self._front)]

    def _secure(self, trial: FrozenTrial) -> KeptRecord | None:
        """Sees to it that a trial's best checkpoint is kept, and that it can be read; None if there is none to keep."""
        number = trial.number
        if number in self.records:
            return self.records[number]
        folder, source = kept_folder(self._run, number), trial_folder(self._run, number) / BEST
        figures = (number, _value(trial), trial.user_attrs.get("best_epoch"))
        reasons = []
        try:
            if (folder / CHECKPOINT).exists():
                try:
                    return check_kept(folder, *figures)
                except CheckpointError as error:
                    reasons.append(str(error))
            if self._home is not None:
                source = self._home.fetch(number)
            try:
                return keep_checkpoint(source, folder, *figures)
            except CheckpointError as error:
                reasons.append(str(error))
            finally:
                if self._home is not None:
                    source.unlink(missing_ok=True)
        except OSError as error:  # the file may well be sound: nothing may be deleted on account of it
            raise RunError(f"{folder}: its checkpoint cannot be read ({error.strerror}); mend the disk") from None
        self.damaged[number] = "; ".join(reasons)
        return None

    def _clear(self, ended: Iterable[FrozenTrial], losers: Iterable[int]) -> None:
        """Deletes the weights of those that have lost, and what trials that have ended no longer need."""
        for number in losers:
            self._drop(number)
        if self._home is not None:
            for trial in own(ended if self._begun else ()):  # what the first call finds is collected at once
                if trial.number not in self.damaged:
                    self._home.clear(trial.number)
        self._late.extend(trial.number for trial in own(ended))
        for number in {*self._late, *(trial.number for trial in own(ended))}:
            folder = trial_folder(self._run, number)
            if (folder / SCRATCH).exists():
                shutil.rmtree(folder / SCRATCH, ignore_errors=True)
            if number in self.damaged:  # what cannot be read stays: who knows what can still be made of it
                for path in (folder / BEST.parent).glob("*"):
                    if path.name != BEST.name:
                        path.unlink(missing_ok=True)
            elif (folder / BEST.parent).exists():
                shutil.rmtree(folder / BEST.parent, ignore_errors=True)
        for trial in ended:
            self._reserved.pop(trial.number, None)
            self._settled.add(trial.number)

    def _collect(self, trials: Iterable[FrozenTrial]) -> None:
        """Deletes what dead processes have left: kept folders of no kept trial, half-written ones, temporary files.

        A running trial's files are its own; it tidies them when it is taken up. A kept checkpoint that cannot be read
        stays.
        """
        chosen = {kept_folder(self._run, number) for number in (*self.records, *self.damaged)}
        for folder in (self._run / KEPT).glob("trial-*"):
            if folder not in chosen or not (folder / CHECKPOINT).exists():
                shutil.rmtree(folder, ignore_errors=True)
        ended = [trial_folder(self._run, trial.number) for trial in own(trials) if trial.state in FINISHED]
        for folder in (self._run, *(kept_folder(self._run, number) for number in self.records), *ended):
            for path in folder.glob(".*.tmp"):
                if f".{os.getpid()}." not in path.name:  # not one that this process is writing
                    path.unlink(missing_ok=True)
        if self._home is not None:
            numbers = [trial.number for trial in own(trials) if trial.state in FINISHED]
            self._home.collect(self.records.keys(), self.damaged.keys(), numbers)

    def _held(self, trials: Iterable[FrozenTrial]) -> int:
        """Returns the bytes that running trials take or may come to take, and those of unreadable kept checkpoints."""
        running = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
        taken = {number: _bytes((trial_folder(self._run, number) / BEST).parent) for number in running}
        damaged = [(kept_folder(self._run, number), trial_folder(self._run, number)) for number in self.damaged]
        unreadable = _bytes(*(folder for folders in damaged for folder in folders))
        return unreadable + sum(max(size, self._reserved.get(number, 0)) for number, size in taken.items())

    def _size(self, number: int) -> int:
        """Returns the bytes of a trial's best checkpoint."""
        for path in (kept_folder(self._run, number) / CHECKPOINT, trial_folder(self._run, number) / BEST):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_size
        return 0 if self._home is None else self._home.size(number)

    def _drop(self, number: int) -> None:
        """Deletes a kept checkpoint."""
        shutil.rmtree(kept_folder(self._run, number), ignore_errors=True)
        if self._home is not None:
            self._home.drop(number)


def keep_best(
    run: Path,
    trials: list[FrozenTrial],
    keep: int,
    budget: float | None = None,
    directions: Sequence[StudyDirection] = (),
) -> list[Path]:
    """Tidies a run's checkpoints once; see `Keeper`, which a search uses."""
    return Keeper(run, keep, budget, directions).tidy(trials)


def disk_used(run: Path) -> int:
    """Returns the bytes of all checkpoints in a run folder; a file with several names counts once."""
    return _bytes(run / KEPT, *(run / TRIALS).glob("*/checkpoints"))


def _value(trial: FrozenTrial) -> float:
    reached = value_of(trial)
    return reached if reached is not None else trial.values[0]


def _bytes(*folders: Path) -> int:
    """Returns the bytes of the files under folders, each inode once; files that go meanwhile count nothing."""
    sizes: dict[tuple[int, int], int] = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())
