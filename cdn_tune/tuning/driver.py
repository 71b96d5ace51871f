"""The running search, as the process that started it holds it."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.distributed.group import WorkerGroup
from cdn_tune.distributed.nodes import was_started_here
from cdn_tune.distributed.ray import orphaned_groups, remove_placement_group
from cdn_tune.errors import RunError
from cdn_tune.training.memory.size import checkpoint_bytes
from cdn_tune.training.object_store.sync import bring_home
from cdn_tune.training.object_store.working_copy import delete_at_home
from cdn_tune.tuning.budget import End, end_of, spent
from cdn_tune.tuning.checkpoints.retention import GB, Keeper, keep_best
from cdn_tune.tuning.engine.ray.node_checks import Readiness
from cdn_tune.tuning.engine.ray.slots import Places
from cdn_tune.tuning.engine.ray.tune_adapters import Admission
from cdn_tune.tuning.layout import UNFIT, trial_folder
from cdn_tune.tuning.planning.preflight import largest_checkpoint
from cdn_tune.tuning.results.leaderboard import leaderboard, write_leaderboard
from cdn_tune.tuning.results.status import gpu_hours
from cdn_tune.tuning.stop_file import StopFile, ask_to_stop, withdraw
from cdn_tune.tuning.study.study import Study

_SHOW_SECONDS = 0.2
_SHARE = 50.0  # of the driver's time, at most one part in so many goes into showing
_WRITE_SECONDS = 5.0
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class SearchState:
    """A search as it stands.

    Attributes:
        rows: The leaderboard.
        limit: Trials in all.
        slots: Trials that run at once.
        finished: Whether no trial is left to run.
        elapsed: Seconds of searching, over all starts.
        gpu_hours: Of all trials.
        halted: Why no further trial starts, if so.
        lines: What the user should know of the cluster.
    """

    rows: list[dict[str, Any]]
    limit: int
    slots: int
    finished: bool
    elapsed: float = 0.0
    gpu_hours: float = 0.0
    halted: str | None = None
    lines: tuple[str, ...] = ()


OnChange = Callable[[SearchState], None]


class Driver:
    """Shows, tidies, and ends a search.

    Args:
        run: The run folder.
        space: What is searched, and how.
        experiment: The base experiment.
        study: The record.
        limit: Trials in all.
        on_change: Called when there is something new, a few times a second at most.
        stop: Whether the user has asked to stop.
    """

    def __init__(
        self,
        run: Path,
        space: SearchSpace,
        experiment: Experiment,
        study: Study,
        limit: int,
        on_change: OnChange,
        stop: Callable[[], bool],
    ) -> None:
        self.run, self.space, self.experiment, self.study, self.limit = run, space, experiment, study, limit
        self.ended_by: str | None = None
        self._gpus = space.resources.workers * space.resources.gpus_per_worker
        self._on_change, self._stop, self._stop_file = on_change, stop, StopFile(run)
        budget = None if space.disk_budget_gb is None else space.disk_budget_gb * GB
        self._keeping = (space.keep, budget, study.directions if len(study.directions) > 1 else ())
        self._keeper = Keeper(run, *self._keeping)
        self._largest = 0 if budget is None else largest_checkpoint(study.candidates)
        self._searched = float(study.attributes.get("searched_seconds", 0.0))
        self._started: float | None = None
        self._places: Places | None = None
        self._end = None if study.is_finished(limit) else self._budget_end()
        self._shown = self._written = self._looked = self._counted = 0.0
        self._changed, self._pause = True, _SHOW_SECONDS

    @property
    def is_finished(self) -> bool:
        """Whether no trial is left to run."""
        return self.study.is_finished(self.limit)

    @property
    def seconds(self) -> float:
        """Seconds of searching, over all starts."""
        return self._searched + (0.0 if self._started is None else time.monotonic() - self._started)

    def start(self, home: str, data: dict[str, Any]) -> Admission:
        """Begins to count the time, and looks at the cluster; returns when Ray Tune may start another trial.

        Args:
            home: The node that this process is on.
            data: Fingerprint of its data.
        """
        self._started = time.monotonic()
        self._keeper.tidy(self.study.entries())  # what a crash has left
        readiness = Readiness(self.experiment.data, data, home)
        places = self._places = Places(self.space.resources, readiness, may_grow=not was_started_here())
        places.look()
        self.show(at_once=True)

        def asked() -> int:
            self.poll()  # Ray Tune asks, and does nothing else, while no trial runs
            places.look()
            return places.asked

        return Admission(
            self.limit,
            self._is_over,
            asked,
            self._has_room,
            self._reserve,
            self._give_up,
            lambda: places.avoid,
            places.refuse,
        )

    def poll(self) -> None:
        """Looks whether it should end, and at the cluster; called all the time."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._look()
            self._end = self._end or self._budget_end()
            if now - self._counted >= _WRITE_SECONDS:
                self._counted = now
                self.study.note(searched_seconds=round(self.seconds, 1))
                if self.space.resources.workers > 1:
                    for group in orphaned_groups():  # of trials whose own process was lost
                        remove_placement_group(group)
        if (self._stop() or (self._end is not None and self._end.at_once)) and not self._stop_file():
            ask_to_stop(self.run)
        if self._changed:
            self.show()

    def _look(self) -> None:
        """Looks at the cluster, and tells what is wrong with its nodes."""
        if self._places is None:
            return
        self._places.look()
        self.study.halted = self.study.halted or self._places.why_none
        lines = list(self._places.lines())
        if lines != (self.study.attributes.get(UNFIT) or []):
            self.study.note(**{UNFIT: lines})
            self._changed = True

    def changed(self) -> None:
        """Takes note that a trial has begun or reported."""
        self._changed = True

    def ended(self) -> None:
        """Tidies after a trial."""
        self._changed = True
        self._keeper.tidy(self.study.entries())
        self._end = self._end or self._budget_end()
        if time.monotonic() - self._written >= _WRITE_SECONDS:
            self._write()

    def show(self, at_once: bool = False) -> None:
        """Shows the search as it stands, a few times a second at most."""
        if not at_once and time.monotonic() - self._shown < self._pause:
            return
        began, self._changed = time.monotonic(), False
        rows, slots = self.rows(), self._places.slots if self._places else 0
        lines = self._places.lines() if self._places else ()
        used = gpu_hours(rows)
        self._on_change(
            SearchState(rows, self.limit, slots, self.is_finished, self.seconds, used, self.study.halted, lines)
        )
        self._shown = time.monotonic()
        self._pause = max(_SHOW_SECONDS, _SHARE * (self._shown - began))  # a long table is shown less often

    def rows(self) -> list[dict[str, Any]]:
        """Returns the leaderboard."""
        keys, metrics = list(self.space.parameters), list(self.experiment.eval.metrics)
        return leaderboard(self.study.entries(), keys, metrics, directions=self.study.directions, gpus=self._gpus)

    def stop(self) -> None:
        """Ends what it has under way on the cluster."""
        if self._places is not None:
            self._places.close()

    def close(self) -> list[Path]:
        """Writes down how the search stands; returns the kept checkpoints, best first."""
        self.study.note(searched_seconds=round(self.seconds, 1))
        self._started, self._searched = None, self.seconds
        self._end = self._end or self._budget_end()
        if self._end is not None and not self.is_finished:
            self.ended_by = self._end.reason
        kept = keep_best(self.run, self.study.entries(), *self._keeping)  # once more over everything
        self._write()
        self.show(at_once=True)
        withdraw(self.run)
        return kept

    def _write(self) -> None:
        self._written = time.monotonic()
        write_leaderboard(self.run, self.rows())
        bring_home(self.run)

    def _is_over(self) -> bool:
        return self._stop() or self._stop_file() or self._end is not None

    def _has_room(self) -> bool:
        return self._keeper.fits(self.study.entries(), self._largest)

    def _reserve(self, number: int) -> None:
        """Prepares a trial's start."""
        if self.study.is_new(number):  # a folder there is of a trial whose record was lost with its machine
            shutil.rmtree(trial_folder(self.run, number), ignore_errors=True)
            delete_at_home(trial_folder(self.run, number))
        if self.space.disk_budget_gb is not None:
            self._keeper.reserve(number, checkpoint_bytes(self.study.experiment(number)))

    def _give_up(self, number: int) -> None:
        """Has the workers of a trial that is stopped early end: Ray Tune tells who holds them only with the next."""
        if self.space.resources.workers > 1:
            with contextlib.suppress(OSError, RunError):  # then with the next trial, or the end of the search
                WorkerGroup.give_up(trial_folder(self.run, number))

    def _budget_end(self) -> End | None:
        budget = self.space.budget
        if budget == type(budget)():
            return None
        return end_of(budget, spent(self.study.trials(), self.seconds, self._gpus))
