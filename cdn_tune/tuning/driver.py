"""The running search, as the process that started it holds it."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.distributed.cluster import capacity, node_resources
from cdn_tune.distributed.ray import tune
from cdn_tune.training.mirror import bring_home
from cdn_tune.training.size import checkpoint_bytes
from cdn_tune.training.working_copy import delete_at_home, portable
from cdn_tune.tuning.adapters import NUMBER, Admission, StudyScheduler, StudySearcher
from cdn_tune.tuning.budget import End, end_of, spent
from cdn_tune.tuning.control import StopFile, ask_to_stop, withdraw
from cdn_tune.tuning.keep import GB, Keeper, keep_best
from cdn_tune.tuning.layout import RAY_LOG, trial_folder
from cdn_tune.tuning.leaderboard import leaderboard, write_leaderboard
from cdn_tune.tuning.preflight import largest_checkpoint
from cdn_tune.tuning.status import gpu_hours
from cdn_tune.tuning.study import Study
from cdn_tune.tuning.trial import GroupTrial, run_trial

_SHOW_SECONDS = 0.2
_SHARE = 20.0  # of the driver's time, at most one part in so many goes into showing
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
    """

    rows: list[dict[str, Any]]
    limit: int
    slots: int
    finished: bool
    elapsed: float = 0.0
    gpu_hours: float = 0.0
    halted: str | None = None


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
        self._slots, self._end = 0, None if study.is_finished(limit) else self._budget_end()
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

    def admission(self) -> Admission:
        """Returns when Ray Tune may start another trial."""
        return Admission(self.limit, self._is_over, lambda: self._slots, self._has_room, self._reserve)

    def start(self) -> None:
        """Begins to count the time, and looks at the cluster."""
        self._started = time.monotonic()
        self._keeper.tidy(self.study.entries())  # what a crash has left
        self._slots = capacity(self.space.resources, node_resources())
        self.show(at_once=True)

    def poll(self) -> None:
        """Looks whether it should end, and at the cluster; called all the time."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._slots = capacity(self.space.resources, node_resources())
            self._end = self._end or self._budget_end()
            if now - self._counted >= _WRITE_SECONDS:
                self._counted = now
                self.study.note(searched_seconds=round(self.seconds, 1))
        if (self._stop() or (self._end is not None and self._end.at_once)) and not self._stop_file():
            ask_to_stop(self.run)
        if self._changed:
            self.show()

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
        rows = self.rows()
        self._on_change(
            SearchState(
                rows, self.limit, self._slots, self.is_finished, self.seconds, gpu_hours(rows), self.study.halted
            )
        )
        self._shown = time.monotonic()
        self._pause = max(_SHOW_SECONDS, _SHARE * (self._shown - began))  # a long table is shown less often

    def rows(self) -> list[dict[str, Any]]:
        """Returns the leaderboard."""
        keys, metrics = list(self.space.parameters), list(self.experiment.eval.metrics)
        return leaderboard(self.study.entries(), keys, metrics, directions=self.study.directions, gpus=self._gpus)

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
        self._keeper.reserve(number, checkpoint_bytes(self.study.experiment(number)))

    def _budget_end(self) -> End | None:
        budget = self.space.budget
        if budget == type(budget)():
            return None
        return end_of(budget, spent(self.study.trials(), self.seconds, self._gpus))


class _Watch(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Tells the driver what happens in Ray Tune."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002
        self._driver.poll()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._driver.changed()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:  # noqa: ARG002
        self._driver.changed()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._driver.ended()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._driver.ended()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray snapshots its callbacks; this one has no state of its own


def run_tuner(driver: Driver, train: Callable[..., object]) -> None:
    """Runs Ray Tune over the study until no trial is left, a budget is spent, or somebody asks to stop."""
    space = driver.space
    settings = {"base": driver.experiment.plain(), "run": portable(driver.run), "resources": space.resources.plain()}
    resources = space.resources
    grouped = resources.workers > 1
    if grouped:  # the driver of a group only waits: it takes a byte of memory, and no CPU from the workers
        group = tune.with_parameters(GroupTrial, **settings, max_failures=space.max_failures)
        trainable = tune.with_resources(group, {"memory": 1})
    else:
        needs = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
        trainable = tune.with_resources(tune.with_parameters(run_trial, **settings, train=train), needs)
    driver.start()
    scratch = tempfile.mkdtemp(prefix="cdn-tune-")
    try:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=StudySearcher(driver.study, driver.admission()),
                scheduler=StudyScheduler(driver.study),
                num_samples=-1,
                reuse_actors=not grouped,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,  # nothing in it is read again: the study is the record
                callbacks=[_Watch(driver)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials keep their own
                failure_config=tune.FailureConfig(max_failures=0 if grouped else space.max_failures),
                verbose=0,
            ),
        )
        with _quiet(driver.run / RAY_LOG), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config[NUMBER]:04d}"


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Sends Ray's own lines to a file; what went wrong is in the study and in the trials' folders."""
    handler = logging.FileHandler(path, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.train", "ray.air")]
    before = [(logger, logger.level, logger.propagate, logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
        logger.propagate, logger.handlers = False, [handler]
    try:
        yield
    finally:
        for logger, level, propagate, handlers in before:
            logger.setLevel(level)
            logger.propagate, logger.handlers = propagate, handlers
        handler.close()
