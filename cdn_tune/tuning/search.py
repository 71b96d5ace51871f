"""A search: Ray Tune places and runs trials, the study decides and remembers."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.data.dataset import load_splits
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.distributed.cluster import connected, slots
from cdn_tune.distributed.ray import tune
from cdn_tune.errors import RunError, SearchError
from cdn_tune.training.manifest import describe_run
from cdn_tune.training.run_folder import EXPERIMENT, SPACE, claim, locked
from cdn_tune.tuning.adapters import NUMBER, StudyScheduler, StudySearcher
from cdn_tune.tuning.keep import keep_best
from cdn_tune.tuning.leaderboard import leaderboard, write_leaderboard
from cdn_tune.tuning.ranking import ranking
from cdn_tune.tuning.study import Study, sqlite_url
from cdn_tune.tuning.trial import GroupTrial, run_trial


@dataclass(frozen=True)
class SearchState:
    """A search as it stands.

    Attributes:
        rows: The leaderboard.
        limit: Trials in all.
        slots: Trials that run at once.
        finished: Whether no trial is left to run.
    """

    rows: list[dict[str, Any]]
    limit: int
    slots: int
    finished: bool


OnChange = Callable[[SearchState], None]


@dataclass(frozen=True)
class SearchResult:
    """How a search ended.

    Attributes:
        rows: The leaderboard.
        kept: Checkpoints of the best trials, best first.
        was_finished: Whether the run folder held the finished search already; nothing was run.
        interrupted: Whether it was stopped before its last trial; the same command goes on.
    """

    rows: list[dict[str, Any]]
    kept: list[Path]
    was_finished: bool
    interrupted: bool


class _Watch(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """After every event: leaderboard, kept checkpoints, and whoever looks on."""

    def __init__(self, search: _Search) -> None:
        self._search = search

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._search.show()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:  # noqa: ARG002
        self._search.show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._search.tidy()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._search.tidy()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray snapshots its callbacks; this one has no state of its own


@dataclass
class _Search:
    """The running search, as the driver holds it."""

    run: Path
    space: SearchSpace
    experiment: Experiment
    study: Study
    limit: int
    slots: int
    on_change: OnChange

    def rows(self) -> list[dict[str, Any]]:
        return leaderboard(self.study.trials(), list(self.space.parameters), list(self.experiment.eval.metrics))

    def show(self) -> list[dict[str, Any]]:
        rows = self.rows()
        self.on_change(SearchState(rows, self.limit, self.slots, self.is_finished()))
        return rows

    def tidy(self) -> list[Path]:
        kept = keep_best(self.run, self.study.trials(), self.space.keep)
        write_leaderboard(self.run, self.show())
        return kept

    def is_finished(self) -> bool:
        return len(self.study.trials()) >= self.limit and not self.study.unfinished()


def search(
    space: SearchSpace,
    experiment: Experiment,
    run: Path,
    on_change: OnChange,
    trials: int | None = None,
    address: str | None = None,
) -> SearchResult:
    """Runs a search, or goes on with the one that the run folder holds.

    Args:
        space: What is searched, and how.
        experiment: The base experiment under all fixed overrides.
        run: The run folder; on a cluster, reachable from every node under this path.
        on_change: Called in the driver whenever a trial has reported or ended.
        trials: Trials in all, in place of the space's; may be raised to go on with a finished search.
        address: Ray cluster to join; None starts Ray on this machine.

    Returns:
        The leaderboard and the kept checkpoints.

    Raises:
        CdnTuneError: If data, run folder, cluster or every single trial is at fault.
    """
    limit = trials or space.trials
    run = run.absolute()
    with locked(run):
        load_splits(experiment.data, ("train", "val"))  # what is wrong with the data is said here, once
        manifest = describe_run("search", experiment, fingerprint(experiment.data))
        claim(run, manifest, {EXPERIMENT: experiment.plain(), SPACE: _identity(space)})
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = Study(sqlite_url(run), space)
        running = _Search(run, space, experiment, study, limit, 0, on_change)
        was_finished = running.is_finished()
        try:
            if not was_finished:
                with connected(address) as available:
                    running.slots = slots(space.resources, available)
                    running.show()
                    _run_tuner(running)
        finally:
            kept = running.tidy()
        rows = running.rows()
        interrupted = not running.is_finished()
    if study.halted:
        raise RunError(f"{study.halted}; the same command then goes on")
    if not interrupted and not ranking(study.trials()):
        reasons = "; ".join(sorted({str(row["reason"]) for row in rows}))
        raise SearchError(f"{run}: all {len(rows)} trials failed: {reasons}")
    return SearchResult(rows, kept, was_finished, interrupted)


def _identity(space: SearchSpace) -> dict[str, Any]:
    """What makes a search the same one when it is taken up again: all but its budget."""
    return {key: value for key, value in space.plain().items() if key not in {"trials", "keep", "max_failures"}}


def _run_tuner(running: _Search) -> None:
    """Runs Ray Tune over the study until no trial is left, or Ctrl-C."""
    settings = {
        "base": running.experiment.plain(),
        "run": str(running.run),
        "resources": running.space.resources.plain(),
    }
    resources = running.space.resources
    grouped = resources.workers > 1
    if grouped:  # the driver of a group only waits: it takes a byte of memory, and no CPU from the workers
        group = tune.with_parameters(GroupTrial, **settings, max_failures=running.space.max_failures)
        trainable = tune.with_resources(group, {"memory": 1})
    else:
        needs = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
        trainable = tune.with_resources(tune.with_parameters(run_trial, **settings), needs)
    scratch = tempfile.mkdtemp(prefix="cdn-tune-")
    try:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=StudySearcher(running.study, running.limit),
                scheduler=StudyScheduler(running.study),
                num_samples=-1,
                max_concurrent_trials=running.slots,
                reuse_actors=not grouped,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,  # nothing in it is read again: the study is the record
                callbacks=[_Watch(running)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials keep their own
                failure_config=tune.FailureConfig(max_failures=0 if grouped else running.space.max_failures),
                verbose=0,
            ),
        )
        with _quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config[NUMBER]:04d}"


@contextlib.contextmanager
def _quiet() -> Any:
    """Keeps Ray's own lines off the terminal; what went wrong is in the study and in the trials' folders."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.train", "ray.air")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
