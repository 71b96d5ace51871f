"""The study: the only record of a search, from which trials are drawn and to which their results are written."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.pruners import NopPruner
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.config.check import most
from cdn_tune.training.reports import Decisions
from cdn_tune.tuning.storage.open import open_storage
from cdn_tune.tuning.storage.write_through import WriteThrough
from cdn_tune.tuning.study.attributes import Attributes
from cdn_tune.tuning.study.candidates import Candidates
from cdn_tune.tuning.study.failures import LOST, MEMORY, Failures
from cdn_tune.tuning.study.filtered_study import altered, stored_study
from cdn_tune.tuning.study.proposals import Proposals
from cdn_tune.tuning.study.ranking import (
    CONFIRMATION,
    CONFIRMS,
    FINISHED,
    SEED,
    Objectives,
    is_paused,
    own,
    role_of,
    seed_of,
    superseded,
    trained,
    value_of,
)
from cdn_tune.tuning.study.rungs import Rungs
from cdn_tune.tuning.study.samplers import build_sampler
from cdn_tune.tuning.study.stopping_rules import build_pruner, should_prune


class Study:
    """An Optuna study in a storage, seen as a list of numbered trials.

    The first objective of a trial is its best epoch's val metric so far; that is also its intermediate value at each
    epoch (or optimiser step), so pruners compare what trials are worth and a pruned trial keeps the value it had
    reached.

    Only one process writes to a study at a time (it holds the run folder); what is kept in memory here follows from the
    record.

    Args:
        storage: Optuna storage URL, or a storage, e.g. of `open_storage`.
        space: What is searched.
        base: The base experiment under all fixed overrides.
        name: The study's name in the storage; the space's if None.
        longest: Most optimiser steps of a trial, where progress is counted in them.
        clock: Seconds since any moment, never falling; attributes that change with every report are written now and
            then by it. The default stands still: they are then written when a trial ends.
    """

    def __init__(
        self,
        storage: str | BaseStorage,
        space: SearchSpace,
        base: Experiment,
        name: str | None = None,
        longest: int | None = None,
        clock: Callable[[], float] = float,
    ) -> None:
        self.halted: str | None = None  # why no further trial should start, and the search ends with an error
        self.space, self.candidates = space, Candidates(space, base)
        self.objectives = Objectives(space, base)
        if space.early_stopping.unit == "epoch":
            longest = most(space, "train.epochs", base.train.epochs)
        self._pruner = build_pruner(space)
        opened = open_storage(storage) if isinstance(storage, str) else storage
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.optuna = stored_study(
                recorded := WriteThrough(opened),
                name or space.name,
                self.objectives.directions,
                sampler=build_sampler(space, self.candidates, 0),
                pruner=NopPruner(),  # `report` calls the space's, over a view of the study
            )
        entries = self.entries()
        self.pauses = space.early_stopping.mode == "promote"  # whether a trial that lags is paused
        self._left = [trial.number for trial in entries if trial.state == TrialState.RUNNING and not is_paused(trial)]
        self._new: set[int] = set()
        self._counted: int | None = None  # follows from the record; counting reads all of it
        self._attributes = Attributes(self.optuna, clock)
        self._failures = Failures(entries)
        self._proposals = Proposals(self.optuna, recorded, self.candidates, entries)
        self._rungs = Rungs(space, longest, self.optuna)

    @property
    def attributes(self) -> Mapping[str, Any]:
        """What is recorded of the search as a whole."""
        attributes: dict[str, Any] = self.optuna.user_attrs
        return attributes

    def note(self, **attributes: Any) -> None:
        """Records something of the search as a whole."""
        held = self.attributes
        for key, value in attributes.items():
            if held.get(key) != value:
                self.optuna.set_user_attr(key, value)

    def begin(self) -> None:
        """Queues the points to try first."""
        with self.optuna.transaction():
            for point in self.candidates.points():
                self.optuna.enqueue_trial(point, skip_if_exists=True)

    @property
    def directions(self) -> list[StudyDirection]:
        """Whether each objective is maximised or minimised."""
        return self.optuna.directions

    def entries(self) -> list[FrozenTrial]:
        """Returns everything that was ever proposed or learned, by number."""
        return [trial for trial in self.optuna.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]

    def trials(self) -> list[FrozenTrial]:
        """Returns every trial of this run that was ever started, by number; without confirmations."""
        return own(self.entries())

    def counted(self) -> int:
        """Returns how many proposed trials count: a failed one that is tried again does not."""
        if self._counted is None:
            again = superseded(self.optuna.get_trials(deepcopy=False))
            self._counted = sum(trial.number not in again for trial in self.trials())
        return self._counted

    def trial(self, number: int) -> FrozenTrial:
        """Returns one trial as it is recorded now."""
        return self.optuna.trial(number)

    def unfinished(self) -> list[FrozenTrial]:
        """Returns the trials, and their confirmations, that are recorded as running, paused ones included."""
        return trained(self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def unconfirmed(self) -> list[tuple[FrozenTrial, int]]:
        """Returns which trials are to be confirmed under which seed, and were not yet; see `Proposals.unconfirmed`."""
        return self._proposals.unconfirmed()

    def is_finished(self, limit: int) -> bool:
        """Whether no trial is left to run, and none to confirm."""
        return not self.unfinished() and not self._proposes(limit) and not self.unconfirmed()

    def has_more(self, limit: int, proposes: bool = True) -> bool:
        """Whether another trial may be assigned, as far as is known without the sampler; arguments as of `next`."""
        tries = proposes and (self._rungs.promotable() is not None or self._proposes(limit))
        return bool(self._left) or tries or bool(self._to_confirm())

    def next(self, limit: int, proposes: bool = True) -> int | None:
        """Returns the next trial to run.

        First those that an earlier process left unfinished, then paused ones that may go on, then new ones, and once
        all of these have ended, the confirmations of the best. A proposal that breaks a constraint, or equals an
        earlier trial, is recorded and not returned. Returns None while proposed trials run or are paused that
        confirmation waits for, and when nothing is left.

        Args:
            limit: Trials in all, those of confirmation included.
            proposes: Whether new points may be tried, and paused trials go on.
        """
        while self._left:
            number = self._left.pop(0)
            if self._proposals.take_up(self.trial(number), self._failures.memory_limit):
                return number
            self._counted = None
        if self.halted:
            return None
        if proposes and (promoted := self._promote()) is not None:
            return promoted
        if proposes and self._proposes(limit):
            number_or_reason = self._proposals.propose(self._failures.memory_limit)
            if isinstance(number_or_reason, str):
                self.halted = number_or_reason
                return None
            if number_or_reason is not None:
                self._new.add(number_or_reason)
                self._counted = self.counted() + 1
                return number_or_reason
        for trial, seed in self._to_confirm()[:1]:
            self._new.add(number := self._proposals.confirm(trial, seed))
            return number
        return None

    def _proposes(self, limit: int) -> bool:
        """Whether new points are to be tried: there is room beside those that confirmation takes."""
        return not self._proposals.is_exhausted and self.counted() < limit - self.space.confirm.trials

    def _to_confirm(self) -> list[tuple[FrozenTrial, int]]:
        """Returns what can be confirmed now: nothing while a trial runs that may come to be among the best."""
        if not self.space.confirm.top or own(self.unfinished()):
            return []
        return self.unconfirmed()

    def promote_last(self) -> int | None:
        """Returns a paused trial that goes on although its rung holds too few to compare, where nothing else is left.

        So at least one trial comes to its end.
        """
        return None if self.halted else self._promote(least=1)

    def end_early(self, running: bool, has_best: Callable[[FrozenTrial], bool]) -> bool:
        """Records that the search has ended for trials that are paused; returns whether there were any.

        Args:
            running: Those that run and have reached something, too.
            has_best: Whether the best model of one that ran is on disk. It has failed if a kill has lost that.
        """
        trials = own(self.unfinished())
        ended = [trial for trial in trials if is_paused(trial) or (running and trial.intermediate_values)]
        for trial in ended:
            epoch = trial.user_attrs.get("epoch", 0)
            if not is_paused(trial) and not has_best(trial):
                lost = "its best model was lost with a process before it was written, and the search has ended"
                self.fail(trial.number, f"after epoch {epoch}: {lost}; --retry-failed trains it again", LOST)
                continue
            after = f"paused after epoch {epoch}, not promoted" if is_paused(trial) else f"after epoch {epoch}"
            self.prune(trial.number, f"stopped early: {after} before the search ended")
        return bool(ended)

    def is_new(self, number: int) -> bool:
        """Whether a trial was created by this process."""
        return number in self._new

    def parameters(self, number: int) -> dict[str, Any]:
        """Returns a trial's sampled values by dotted key, values per layer as lists; a confirmation's seed too."""
        trial = self.trial(number)
        seed = seed_of(trial)
        return self.candidates.overrides(trial.params) | ({} if seed is None else {"seed": seed})

    def experiment(self, number: int) -> Experiment:
        """Returns a trial's experiment."""
        trial = self.trial(number)
        return self.candidates.experiment(trial.params, f"trial {number}", seed_of(trial))

    def decisions(self, number: int, worth: float) -> Decisions | None:
        """Returns with which reports a trial may be stopped or paused; None if it never is.

        `worth` is the best val metric below which no trial that is stopped is kept.
        """
        rule = self.space.early_stopping
        if rule.name == "none" or role_of(self.trial(number)) == CONFIRMATION:
            return None
        if not self._rungs.decide:
            return Decisions(rule.unit, rule.least, worth=worth)
        return Decisions(rule.unit, self._rungs.first(number), rule.reduction_factor, self.pauses, worth)

    def report(self, number: int, step: int, value: float, note: Mapping[str, Any]) -> bool:
        """Records what a trial has reached; returns whether it should be pruned, or is paused where trials are.

        A confirmation is neither, ever.

        Args:
            number: The trial.
            step: Its progress in the unit of early stopping, from 1 (seconds: in milliseconds). One that is on record
                (of a trial taken up again) is kept as it was.
            value: The trial's best val metric so far.
            note: User attributes to set, e.g. the best epoch.
        """
        trial = self.trial(number)
        if trial.state != TrialState.RUNNING:
            return False
        with self.optuna.transaction():
            if step >= max(trial.intermediate_values, default=step):  # else later ones are on record
                self._attributes.add(trial, note)
            self._failures.end_well()
            is_new = step not in trial.intermediate_values
            if is_new:
                noted = altered(trial, user_attrs={**trial.user_attrs, **note})
                self._rungs.note_objectives(trial, step, self.objectives.values(noted, value).values())
                self.optuna.report(number, step, value)
            if role_of(trial) == CONFIRMATION:
                return False
            is_last = note.get("epoch", 0) >= note.get("epochs", 1)
            if self._rungs.decide:
                return self._rungs.lags(number, step, is_last)
            return is_new and should_prune(self.optuna, self._pruner, self.trial(number), self.space, is_last)

    def complete(self, number: int) -> None:
        """Records that a trial ran to its end; one that never reported a value has failed."""
        with self.optuna.transaction():
            trial = self._settled(number)
            if trial is None:
                return
            value = value_of(trial)
            values = {} if value is None else self.objectives.values(trial, value)
            missing = [name for name, found in values.items() if found is None or not math.isfinite(found)]
            epoch, epochs = trial.user_attrs.get("epoch", 0), trial.user_attrs.get("epochs", 0)
            if value is None:
                self.fail(number, "ended without reporting a val metric")
            elif epoch < epochs:
                self.fail(number, f"ended after epoch {epoch} of {epochs} without a reason")
            elif missing:
                self.fail(number, f"ended without a value of {', '.join(missing)}")
            else:
                self.optuna.tell(number, [found for found in values.values() if found is not None])

    def prune(self, number: int, reason: str) -> None:
        """Records that a trial was stopped early, with the value it had reached."""
        with self.optuna.transaction():
            trial = self._settled(number)
            if trial is not None:
                self._attributes.write(trial, {"reason": reason})
                self.optuna.tell(number, state=TrialState.PRUNED)
                self._rungs.leave(number)

    def fail(self, number: int, reason: str, failure: str = "deterministic") -> None:
        """Records that a trial failed, and why.

        The third in a row that fails for the same reason before its first epoch halts the search. One that ran out of
        memory is recorded as infeasible, and no trial that needs as much by estimate is started again.

        Args:
            number: The trial.
            reason: In one line.
            failure: Its kind, see `study.failures.kind_of`.
        """
        with self.optuna.transaction():
            trial = self._settled(number)
            if trial is None:
                return
            notes: dict[str, Any] = {"reason": reason, "failure": failure}
            if failure == MEMORY:
                notes["memory_gb"] = self._failures.remember_memory(self.experiment(number))
                self.optuna.set_constraint(number, "memory", 1.0)
            self._attributes.write(trial, notes)
            self.optuna.tell(number, state=TrialState.FAIL)
            self._rungs.remove(number)
        self.halted = self.halted or self._failures.add(self.trial(number))

    def interrupt(self, number: int) -> None:
        """Records the state of a trial that was stopped with a checkpoint; it stays on record as running.

        One that is paused may be promoted from now on.
        """
        with self.optuna.transaction():
            settled = self._settled(number)
        if settled is not None:
            self._rungs.rest(settled)

    def put_back(self, number: int) -> None:
        """Puts back a running trial that has lost its place: it is the next to be assigned, unless it is paused."""
        self.interrupt(number)
        trial = self.trial(number)
        if trial.state not in FINISHED and not is_paused(trial) and number not in self._left:
            self._left.insert(0, number)
            self._new.discard(number)  # its folder holds what it has reached

    def retry_failed(self) -> int:
        """Queues every failed trial anew, as a new trial with the same parameters; returns how many."""
        tried = superseded(self.optuna.get_trials(deepcopy=False))
        entries = trained(self.entries())
        failed = [each for each in entries if each.state == TrialState.FAIL and each.number not in tried]
        with self.optuna.transaction():
            for trial in failed:
                if role_of(trial) == CONFIRMATION:
                    confirmed = self.trial(trial.user_attrs[CONFIRMS])
                    number = self._proposals.confirm(confirmed, trial.user_attrs[SEED], retry_of=trial.number)
                    self._left.append(number)
                    self._new.add(number)
                else:
                    self.optuna.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
        self._counted = None
        return len(failed)

    def _promote(self, least: int = 0) -> int | None:
        """Returns a paused trial that goes on from its rung, recorded as promoted; see `Rungs.promotable`."""
        if (number := self._rungs.promote(least)) is not None:
            self._new.discard(number)  # its folder holds what it has reached
        return number

    def _settled(self, number: int) -> FrozenTrial | None:
        """Returns a running trial with all its notes written; None if it has ended."""
        trial = self.trial(number)
        if trial.state in FINISHED:
            return None
        self._attributes.flush(trial)
        return self.trial(number)
