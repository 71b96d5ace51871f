"""The checkpoint budget: across all trials the best few are kept; the weights of the others go once they have lost."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.errors import CheckpointError, RunError
from cdn_tune.training.runs.kept import KeptRecord
from cdn_tune.tuning.checkpoints.checkpoint_files import CheckpointFiles
from cdn_tune.tuning.study.candidates import GB
from cdn_tune.tuning.study.ranking import (
    FINISHED,
    Confirmed,
    confirmed,
    is_paused,
    models,
    pareto_front,
    ranking,
    trained,
    value_of,
)

_LATE = 16  # so many of the trials that ended last are cleared again: a worker being stopped may write once more


class Files(Protocol):
    """The files that retention acts on; see `CheckpointFiles` for each method. A simulation has none on disk."""

    def begin(self, number: int) -> None: ...  # noqa: D102
    def secure(self, number: int, value: float, epoch: int | None) -> KeptRecord: ...  # noqa: D102
    def publish(self) -> None: ...  # noqa: D102
    def drop(self, number: int) -> None: ...  # noqa: D102
    def clear(self, number: int, damaged: bool) -> None: ...  # noqa: D102
    def clear_remote(self, numbers: Iterable[int]) -> None: ...  # noqa: D102
    def collect(self, kept: set[int], damaged: set[int], ended: set[int]) -> None: ...  # noqa: D102
    def size(self, number: int) -> int: ...  # noqa: D102
    def taken(self, number: int) -> int: ...  # noqa: D102
    def unreadable(self, numbers: Iterable[int]) -> int: ...  # noqa: D102
    def path(self, number: int) -> Path: ...  # noqa: D102


class Retention:
    """Brings a run's checkpoints in line with its study, after every trial's end.

    Order makes it safe: what is to be kept is linked and flushed to disk before anything is deleted, so that the best
    checkpoint is readable whenever the process dies; the next `Retention` tidies what a crash has left. The first call
    checks every trial's folder, later ones only what has changed: of many trials it remembers the few that decide.

    Args:
        files: The checkpoints of the run.
        keep: How many trials keep their best checkpoint; confirmed ones do besides, in that of a confirmation.
        budget: Bytes that all checkpoints may take, those of running trials included; None for no limit.
        directions: Of the objectives; with several, the Pareto front is kept before the ranking.
    """

    def __init__(
        self, files: Files, keep: int, budget: float | None = None, directions: Sequence[StudyDirection] = ()
    ) -> None:
        self.damaged: dict[int, str] = {}  # trials whose checkpoint could not be kept, and why
        self.records: dict[int, KeptRecord] = {}  # of the kept ones, best first
        self.worth = -math.inf  # no trial that is stopped with a lower val metric will be kept, as far as is known
        self.files = files
        self._keep, self._budget, self._directions = keep, budget, directions
        self._settled: set[int] = set()  # ended trials that have been cleared
        self._known: dict[int, FrozenTrial] = {}  # kept ones, the front, confirmations and what they confirm
        self._front: set[int] = set()  # the Pareto front, kept or not: what it beats must not pass for optimal
        self._late: deque[int] = deque(maxlen=_LATE)
        self._reserved: dict[int, int] = {}
        self._begun = False

    def tidy(self, trials: list[FrozenTrial]) -> list[Path]:
        """Keeps the best of the study's trials and deletes the rest; returns the kept checkpoints, best first.

        Args:
            trials: All of them at the first call. Later, at least those that have ended since, with those that they
                confirm, and, where there is a budget, those that run.

        Raises:
            RunError: If a checkpoint to be kept cannot be written or read; nothing was deleted then.
        """
        ended = [trial for trial in trials if trial.number not in self._settled and trial.state in FINISHED]
        if not ended and self._begun:
            return self._paths()
        by_number = self._known | {trial.number: trial for trial in trials}
        candidates = [by_number[number] for number in self.records if number in by_number] + ended
        found = confirmed(by_number.values())
        order, keep = self._order(candidates, by_number, found), max(self._keep, len(found))
        room = None if self._budget is None else self._budget - self._held(trials)
        records: dict[int, KeptRecord] = {}
        for trial in order:
            if len(records) == keep:
                break
            size = self.files.size(trial.number)
            if room is not None and records and size > room:
                continue  # a smaller one further down may still fit
            record = self._secure(trial)
            if record is not None:
                records[trial.number] = record
                room = None if room is None else room - size
        losers = (self.records.keys() | {trial.number for trial in ended}) - records.keys() - self.damaged.keys()
        self.records = records
        # With a disk budget a smaller one further down may be kept, and a front or confirmations go by other values.
        goes_by_value = self._budget is None and len(self._directions) < 2 and not found
        is_full = goes_by_value and len(records) == keep
        self.worth = min(record.value for record in records.values()) if is_full else -math.inf
        runs = (run.number for each in found.values() for run in each.runs)
        decide = {*records, *self._front, *found, *runs}
        self._known = {number: trial for number, trial in by_number.items() if number in decide}
        self.files.publish()
        self._clear(ended, losers)
        if not self._begun and trials:
            finished = {trial.number for trial in trained(trials) if trial.state in FINISHED}
            self.files.collect(set(self.records), set(self.damaged), finished)
            self._begun = True
        return self._paths()

    def begin(self, number: int, is_new: bool, checkpoint_bytes: int) -> None:
        """Prepares the start of a trial, new or taken up again, whose checkpoints may take so many bytes."""
        if is_new:
            self.files.begin(number)
        self._reserved[number] = checkpoint_bytes

    def fits(self, trials: list[FrozenTrial], checkpoint_bytes: int) -> bool:
        """Returns whether another trial, whose checkpoints may take so many bytes, may start beside those that run.

        While trials run, their end frees what they need and the kept checkpoints stay. With none running, kept ones
        are deleted from the last, never the best.

        Raises:
            RunError: If it cannot fit even beside the best alone.
        """
        if self._budget is None:
            return True
        running = any(trial.state == TrialState.RUNNING and not is_paused(trial) for trial in trials)
        while (used := sum(map(self.files.size, self.records)) + self._held(trials)) + checkpoint_bytes > self._budget:
            if running:
                return False
            if len(self.records) < 2:
                raise RunError(
                    f"disk_budget_gb={self._budget / GB:g}: the next trial's checkpoints take up to "
                    f"{checkpoint_bytes / GB:.3g} GB beside {used / GB:.3g} GB of the best one; raise it to "
                    f"{(used + checkpoint_bytes) / GB:.3g}"
                )
            number, _ = self.records.popitem()
            self.files.drop(number)
        return True

    def has_best(self, trial: FrozenTrial) -> bool:
        """Whether the best model of a trial that was running is on disk: its reports go ahead of its checkpoints."""
        record = self._secure(trial)
        self.damaged.pop(trial.number, None)
        return record is not None and record.checkpoint_epoch >= (record.epoch or 0)

    def _paths(self) -> list[Path]:
        return [self.files.path(number) for number in self.records]

    def _order(
        self, candidates: list[FrozenTrial], by_number: dict[int, FrozenTrial], found: dict[int, Confirmed]
    ) -> list[FrozenTrial]:
        """Returns the candidates, best first; one that has lost before has no weights left and cannot come back."""
        numbers = {trial.number for trial in candidates}
        if len(self._directions) < 2:
            compared = {trial.number: trial for trial in candidates}
            for number, each in found.items():
                compared |= {trial.number: trial for trial in (by_number[number], *each.runs)}
            return [trial for trial in models(compared.values()) if trial.number in numbers]
        ranked = ranking(candidates)
        rivals = [by_number[number] for number in numbers | self._front if number in by_number]
        front = pareto_front(rivals, self._directions)
        self._front = {trial.number for trial in front}
        first = [trial for trial in front if trial.number in numbers]
        return [*first, *(trial for trial in ranked if trial.number not in self._front)]

    def _secure(self, trial: FrozenTrial) -> KeptRecord | None:
        """Returns the record of a trial's kept checkpoint, readable and on disk; None if there is none to keep."""
        if trial.number in self.records:
            return self.records[trial.number]
        reached = value_of(trial)
        value = reached if reached is not None else trial.values[0]
        try:
            return self.files.secure(trial.number, value, trial.user_attrs.get("best_epoch"))
        except CheckpointError as error:
            self.damaged[trial.number] = str(error)
            return None

    def _clear(self, ended: Iterable[FrozenTrial], losers: Iterable[int]) -> None:
        """Deletes the weights of those that have lost, and what trials that have ended no longer need."""
        for number in losers:
            self.files.drop(number)
        numbers = [trial.number for trial in trained(ended)]
        if self._begun:  # what the first call finds is collected at once
            self.files.clear_remote(number for number in numbers if number not in self.damaged)
        self._late.extend(numbers)
        for number in {*self._late, *numbers}:
            self.files.clear(number, damaged=number in self.damaged)
        for trial in ended:
            self._reserved.pop(trial.number, None)
            self._settled.add(trial.number)

    def _held(self, trials: Iterable[FrozenTrial]) -> int:
        """Returns the bytes that running trials take or may come to take, and those of unreadable kept checkpoints."""
        running = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
        taken = (self._reserved.get(number) or self.files.taken(number) for number in running)
        return self.files.unreadable(self.damaged) + sum(taken)


def keep_best(
    run: Path,
    trials: list[FrozenTrial],
    keep: int,
    budget: float | None = None,
    directions: Sequence[StudyDirection] = (),
) -> list[Path]:
    """Tidies a run's checkpoints once, over all trials; returns the kept ones, best first."""
    return Retention(CheckpointFiles(run), keep, budget, directions).tidy(trials)
