"""The driver: every decision of a search, for whichever engine runs its trials; no Ray, no files, no wall clock."""

from collections.abc import Callable
from typing import Protocol

from cdn_tune.training.loop import never
from cdn_tune.tuning.budget import End, Reserve, Tally, end_of
from cdn_tune.tuning.checkpoints.retention import Retention
from cdn_tune.tuning.engine.door import Answer, Assignment, Decision, Ending, Loss, Room, TrialReport
from cdn_tune.tuning.layout import UNFIT
from cdn_tune.tuning.study.attributes import ReportAttributes
from cdn_tune.tuning.study.candidates import GB, cost
from cdn_tune.tuning.study.failures import LOST, Retries
from cdn_tune.tuning.study.ranking import CONFIRMATION, CONFIRMS, FINISHED, role_of
from cdn_tune.tuning.study.study import Study

_CHECK_SECONDS = 1.0  # between two checks of the budget
_RECORD_SECONDS = 5.0  # between two records of the time spent


class StopFlag(Protocol):
    """A request to stop that running trials see; see `tuning.layout.StopFile`."""

    def __call__(self) -> bool:
        """Returns whether it is raised."""

    def raise_it(self) -> None:
        """Raises it."""


class Observer(Protocol):
    """Receives the changes of a search."""

    def changed(self, trial_ended: bool) -> None:
        """Records that a trial began, reported or ended."""

    def poll(self) -> None:
        """Shows what has changed; called many times a second."""


class Driver:
    """Decides what a search does next: the engine's door (`engine.door`), over a study.

    Args:
        study: The record.
        limit: Trials in all.
        retention: Keeps the best checkpoints.
        clock: Seconds since any moment, never falling.
        stop_flag: Raised when running trials are to save their state and stop.
        stop: Whether the user has requested a stop.
        largest_checkpoint: Bytes that a trial's checkpoints may take; used where the disk has a budget.
    """

    def __init__(
        self,
        study: Study,
        limit: int,
        retention: Retention,
        clock: Callable[[], float],
        stop_flag: StopFlag,
        stop: Callable[[], bool] = never,
        largest_checkpoint: int = 0,
    ) -> None:
        self.study, self.limit, self.retention = study, limit, retention
        self.space = study.space
        self.ended_by: str | None = None
        self.room = Room(0)
        self.observers: list[Observer] = []
        self._clock, self._stop, self._stop_flag = clock, stop, stop_flag
        self._largest, self._has_disk_budget = largest_checkpoint, self.space.disk_budget_gb is not None
        self._gpus = self.space.resources.workers * self.space.resources.gpus_per_worker
        self._retries = Retries(self.space.max_failures)
        self._tally = Tally(study.entries(), self.space.confirm.top)
        stopping = self.space.early_stopping
        self._unit = stopping.unit
        self._attributes = ReportAttributes(stopping.row.compares == "queries", stopping.metrics)
        self._assigned: set[int] = set()
        self._searched = float(study.attributes.get("searched_seconds", 0.0))
        self._lines = tuple(study.attributes.get(UNFIT) or ())
        self._started: float | None = None
        self._checked = self._recorded = float("-inf")
        self._end: End | None = None  # why no trial starts any more
        self._closing: End | None = None  # why no new point is tried; what was found is still confirmed
        if not study.is_finished(limit):
            self._check_budget()

    @property
    def is_finished(self) -> bool:
        """Whether no trial is left to run."""
        return self.study.is_finished(self.limit)

    @property
    def is_over(self) -> bool:
        """Whether no further trial starts: the user or a budget ends the search, or the machine is at fault."""
        return self._stop() or self._stop_flag() or self._end is not None or self.study.halted is not None

    @property
    def wants_slots(self) -> bool:
        """Whether all slots are taken, and one more would have a trial to run."""
        return len(self._assigned) >= self.room.slots and not self.is_over and self._has_more()

    @property
    def is_stopping(self) -> bool:
        """Whether running trials are to save their state and leave; they see the flag by themselves."""
        return self._stop() or self._stop_flag() or (self._end is not None and self._end.at_once)

    @property
    def seconds(self) -> float:
        """Seconds of searching, over all starts."""
        return self._searched + (0.0 if self._started is None else self._clock() - self._started)

    def start(self) -> None:
        """Begins to count the time, and clears what a crash has left."""
        self._started = self._clock()
        self.retention.tidy(self.study.entries())

    def next(self, room: Room) -> Assignment | Answer:
        """Returns the next trial to run in the engine's room, or why there is none (see `engine.door`).

        Raises:
            RunError: If the disk budget has no room for any further trial.
        """
        self.poll(room)
        if self.is_over:
            return Answer.FINISHED
        if len(self._assigned) >= room.slots or not self._fits():
            return Answer.WAIT
        number = self.study.next(self.limit, self._closing is None)
        if number is None:  # FINISHED is for good, and a running trial may yet lose its node and come back
            if self._assigned and self.study.halted is None:
                return Answer.WAIT
            number = self.study.promote_last() if self._closing is None else None
        if number is None:
            # What the paused ones give up may make room for confirmations, of them too.
            return self.next(room) if self.study.halted is None and self._end_early() else Answer.FINISHED
        self._assigned.add(number)
        size = cost("checkpoint_gb", self.study.experiment(number)) * GB if self._has_disk_budget else 0
        self.retention.begin(number, self.study.is_new(number), round(size))
        self._changed()
        decisions = self.study.decisions(number, self.retention.worth)
        return Assignment(number, self.study.parameters(number), room.avoid, decisions)

    def reported(self, number: int, report: TrialReport) -> Decision:
        """Records an epoch of a trial; returns what the trial does next."""
        if number not in self._assigned:  # of an attempt that was given up
            return Decision.STOP
        epoch, step = report.epoch, self._step(number, report)
        self._retries.reported(number, epoch.epoch)
        attributes = self._attributes.of(number, step, report)
        with self.study.optuna.transaction():
            lags = self.study.report(number, step, epoch.best_value, attributes)
            is_stopped = lags and not self.study.pauses and not epoch.is_last
            if is_stopped:
                self.study.prune(number, f"stopped early after epoch {epoch.epoch}")
        self._changed()
        if epoch.is_last:  # complete; there is nothing left to stop
            return Decision.GO_ON
        if is_stopped:
            self._leave(number)
            return Decision.STOP
        return Decision.PAUSE if lags else Decision.GO_ON

    def _step(self, number: int, report: TrialReport) -> int:
        """Returns how far a trial is after an epoch, in the unit of early stopping.

        An epoch that is trained again, after a kill, takes other seconds: it is as far as it is on record.
        """
        epoch = report.epoch
        if self._unit != "seconds":
            return epoch.epoch if self._unit == "epoch" else epoch.steps
        steps, now = sorted(self.study.trial(number).intermediate_values), round(1000 * report.seconds)
        return steps[epoch.epoch - 1] if epoch.epoch <= len(steps) else max(now, steps[-1] + 1 if steps else 0)

    def ended(self, number: int, ending: Ending) -> None:
        """Records that a trial ended by itself; one that has left the engine already is ignored."""
        if number not in self._assigned:
            return
        if ending.kind == "complete":
            self.study.complete(number)
        elif ending.kind == "failed":
            self.study.fail(number, ending.reason, ending.failure)
        else:  # stays on record as running: it is promoted, or the next start takes it up
            self.study.interrupt(number)
        if ending.kind == "halted":
            self.study.halted = self.study.halted or ending.reason
        self._leave(number)

    def lost(self, number: int, loss: Loss) -> bool:
        """Records that a trial lost its place; returns whether it is assigned again."""
        if number not in self._assigned:
            return False
        again = self._retries.may_go_on(number, loss.kind)
        if again:
            self.study.put_back(number)
            self._assigned.discard(number)
            self._changed()
        else:
            self.study.fail(number, loss.reason, LOST)
            self._leave(number)
        return again

    def poll(self, room: Room) -> None:
        """Checks the budget, whether the search should stop, and what the engine found of its nodes."""
        self.room = room
        self.study.halted = self.study.halted or room.why_none
        if room.lines != self._lines:  # compared in memory: a server would be asked many times a second
            self._lines = room.lines
            self.study.note(**{UNFIT: list(room.lines)})
            self._changed()
        now = self._clock()
        if now - self._checked >= _CHECK_SECONDS:
            self._checked = now
            self._check_budget()
            if now - self._recorded >= _RECORD_SECONDS:
                self._recorded = now
                self._record_time()
        if self.is_stopping and not self._stop_flag():
            self._stop_flag.raise_it()
        for observer in self.observers:
            observer.poll()

    def close(self) -> None:
        """Records how the search stands, and what ended it."""
        self._record_time()
        self._started, self._searched = None, self.seconds
        self._check_budget()
        is_confirmed = not self.study.unfinished() and not self.study.unconfirmed()
        end = self._end or (self._closing if is_confirmed else None)
        if end is not None and not self.is_finished:
            self.ended_by = end.reason
            self._end_early(running=True)

    def _end_early(self, running: bool = False) -> bool:
        """Ends trials when nothing else is tried, as `Study.end_early` does; returns whether there were any."""
        found = self.study.end_early(running, self.retention.has_best)
        entries = self.study.entries()
        self._tally = Tally(entries, self.space.confirm.top)
        self.retention.tidy(entries)
        return found

    def _fits(self) -> bool:
        """Whether the disk budget has room for another trial."""
        return not self._has_disk_budget or self.retention.fits(self.study.unfinished(), self._largest)

    def _leave(self, number: int) -> None:
        """Tidies after a trial that has left its slot."""
        self._assigned.discard(number)
        trial = self.study.trial(number)
        if trial.state in FINISHED:
            self._attributes.forget(number)
            self._tally.add(trial)
        others = self.study.unfinished() if self._has_disk_budget else []
        if role_of(trial) == CONFIRMATION:
            others.append(self.study.trial(trial.user_attrs[CONFIRMS]))
        self.retention.tidy([trial, *others])
        self._check_budget()
        self._changed(trial_ended=True)

    def _changed(self, trial_ended: bool = False) -> None:
        for observer in self.observers:
            observer.changed(trial_ended)

    def _record_time(self) -> None:
        self.study.note(searched_seconds=round(self.seconds, 1))

    def _has_more(self) -> bool:
        return self.study.has_more(self.limit, self._closing is None)

    def _check_budget(self) -> None:
        """Notes whether the budget ends the search.

        Where the best are confirmed, it ends the trying of new points as long as their confirmation can still be paid
        for; a target or a plateau ends no more than that.
        """
        budget = self.space.budget
        if budget == type(budget)():
            return
        spent, running = budget, self.study.unfinished()
        if self.space.confirm.top:
            spent = budget.model_copy(update={"target": None, "plateau": None})
            if self._closing is None and self.room.slots:
                best = self._tally.best(running)  # confirmed or not: spent stays spent
                reserve = Reserve.of(best * self.space.confirm.seeds, self.room.slots)
                self._closing = end_of(budget, self._tally, running, self.seconds, self._gpus, reserve)
        self._end = self._end or end_of(spent, self._tally, running, self.seconds, self._gpus)
