"""A search: opens its study, has an engine run its trials, and returns the leaderboard and the best checkpoints."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.data.dataset import load_splits
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.errors import ConfigError, RunError, SearchError
from cdn_tune.training.loop import never
from cdn_tune.training.object_store.sync import fetched
from cdn_tune.training.runs.run_folder import (
    EXPERIMENT,
    MANIFEST,
    SPACE,
    claim,
    describe_run,
    locked,
    read_manifest,
    without_secrets,
)
from cdn_tune.training.step.process_group import World
from cdn_tune.training.step.steps import global_batches
from cdn_tune.training.train_trial import train_in
from cdn_tune.tuning.checkpoints.checkpoint_files import CheckpointFiles
from cdn_tune.tuning.checkpoints.retention import GB, Retention, keep_best
from cdn_tune.tuning.driver import Driver
from cdn_tune.tuning.engine.door import Engine
from cdn_tune.tuning.engine.ray.audit import Audit
from cdn_tune.tuning.engine.ray.engine import RayEngine
from cdn_tune.tuning.layout import study_url
from cdn_tune.tuning.planning.preflight import check_steps, largest_checkpoint, preflight
from cdn_tune.tuning.progress import OnChange, Progress
from cdn_tune.tuning.stop_file import StopFile, withdraw
from cdn_tune.tuning.storage.check import check_shared
from cdn_tune.tuning.storage.open import open_storage
from cdn_tune.tuning.study.ranking import ranking
from cdn_tune.tuning.study.study import Study
from cdn_tune.tuning.warm_start import learn_from

BUDGETS = frozenset({"trials", "budget", "keep", "max_failures", "disk_budget_gb", "resources"})


@dataclass(frozen=True)
class SearchOptions:
    """How a search is started.

    Attributes:
        trials: Trials in all, in place of the space's; may be raised to go on with a finished search.
        add_trials: So many more than were asked for before.
        address: Ray cluster to join; None starts Ray on this machine.
        storage: Optuna storage URL of the study; the run folder's own journal if None.
        resume: Whether the run folder must hold a search already.
        retry_failed: Whether failed trials are tried again.
        warm_start: Runs whose results are learned from, at the search's first start.
        stop: Asked now and then; once it says yes running trials save a checkpoint, and the search ends.
        train: Trains a trial; takes what `train_in` takes.
        engine: Runs the trials; Ray Tune if None.
    """

    trials: int | None = None
    add_trials: int | None = None
    address: str | None = None
    storage: str | None = None
    resume: bool = False
    retry_failed: bool = False
    warm_start: tuple[Path, ...] = ()
    stop: Callable[[], bool] = never
    train: Callable[..., object] = train_in
    engine: Engine | None = None


@dataclass(frozen=True)
class SearchResult:
    """How a search ended.

    Attributes:
        rows: The leaderboard.
        kept: Checkpoints of the best trials, best first.
        was_finished: Whether the run folder held the finished search already; nothing was run.
        interrupted: Whether it was stopped before its last trial; the same command goes on.
        ended_by: The budget that ended it, in words; None if all trials were run.
        audit: What it left behind on the cluster; None if nothing was run there.
        notes: What the user should know, in lines.
    """

    rows: list[dict[str, Any]]
    kept: list[Path]
    was_finished: bool
    interrupted: bool
    ended_by: str | None = None
    audit: Audit | None = None
    notes: list[str] = field(default_factory=list)


def search(
    space: SearchSpace,
    experiment: Experiment,
    run: Path,
    on_change: OnChange,
    options: SearchOptions | None = None,
) -> SearchResult:
    """Runs a search, or goes on with the one that the run folder holds.

    Args:
        space: What is searched, and how.
        experiment: The base experiment under all fixed overrides.
        run: The run folder, or the URL of one on an object store; on a cluster, reachable from every node.
        on_change: Called in the driver whenever a trial has reported or ended.
        options: How it is started.

    Returns:
        The leaderboard and the kept checkpoints.

    Raises:
        CdnTuneError: If data, run folder, storage, cluster or every single trial is at fault.
    """
    options = options or SearchOptions()
    run = fetched(run)
    if options.resume and not (run / MANIFEST).exists():
        raise RunError(f"--resume: {run} holds no search; check --run, or leave --resume out to start one")
    with locked(run):
        study, notes = open_study(space, experiment, run, options)
        limit = _asked_for(study, options)
        budget = None if space.disk_budget_gb is None else space.disk_budget_gb * GB
        keeping = (space.keep, budget, study.directions if len(study.directions) > 1 else ())
        driver = Driver(
            study,
            limit,
            Retention(CheckpointFiles(run), *keeping),
            time.monotonic,
            StopFile(run),
            options.stop,
            largest_checkpoint=0 if budget is None else largest_checkpoint(study.candidates),
        )
        progress = driver.observer = Progress(driver, run, experiment, on_change, time.monotonic)
        engine = options.engine or RayEngine(space, experiment, run, options.address, options.train)
        was_finished = driver.is_finished
        try:
            if not was_finished:
                withdraw(run)
                with engine.started() as nodes:
                    notes += preflight(space, study.candidates, run, _url(run, options), nodes, options.train)
                    driver.start()
                    engine.run(driver)
        finally:
            driver.close()
            kept = keep_best(run, study.entries(), *keeping)  # once more over everything
            progress.write()
            progress.show()
            withdraw(run)
        rows = progress.rows()
        interrupted = not driver.is_finished and driver.ended_by is None
    if study.halted:
        raise RunError(f"{study.halted}; the same command then goes on")
    if driver.is_finished and not ranking(study.trials()):
        reasons = "; ".join(sorted({str(row["reason"]) for row in rows}))
        raise SearchError(f"{run}: all {len(rows)} trials failed: {reasons}")
    return SearchResult(rows, kept, was_finished, interrupted, driver.ended_by, engine.left_behind, notes)


def open_study(
    space: SearchSpace, experiment: Experiment, run: Path, options: SearchOptions
) -> tuple[Study, list[str]]:
    """Opens the study of a locked run folder, or begins it; returns it with what the user should know.

    Raises:
        CdnTuneError: If the data, the folder or the storage are at fault or hold something else.
    """
    url = _url(run, options)
    check_shared(run, url)
    splits = load_splits(experiment.data, ("train", "val"))  # what is wrong with the data is said here, once
    data = fingerprint(experiment.data)
    manifest = describe_run("search", experiment, data) | {"run_id": secrets.token_hex(8)}
    if url != study_url(run):
        manifest["storage"] = without_secrets(url)
    identity = {key: value for key, value in space.plain().items() if key not in BUDGETS}
    claim(run, manifest, {EXPERIMENT: experiment.plain(), SPACE: identity})
    held = read_manifest(run)
    if held.get("storage") != manifest.get("storage"):
        asked, there = manifest.get("storage", "the run folder's own"), held.get("storage", "the run folder's own")
        raise RunError(f"--storage {asked}: the study of {run} lies in another storage ({there}); name that one")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_steps(space, experiment, len(splits["train"]))
    steps = len(global_batches(len(splits["train"]), experiment, 1, World()))
    storage = open_storage(url, sole_writer=url == study_url(run))
    study = Study(storage, space, experiment, steps_per_epoch=steps, clock=time.monotonic)
    owner = study.attributes.get("run_id")
    if owner not in (None, held.get("run_id")):
        raise RunError(
            f"{without_secrets(url)}: already holds a study named {space.name}, of another run; "
            "choose another `name` in the search space, or another --storage"
        )
    notes = []
    if owner is None:
        for other in options.warm_start:
            notes.append(learn_from(other, study))
        study.begin()
    elif options.warm_start:
        raise ConfigError(f"--warm-start: {run} has begun already; results are learned from at the first start only")
    study.note(
        run_id=held.get("run_id"),
        metric=experiment.eval.metric,
        objectives=list(study.objectives.names),
        dataset=experiment.data.dataset,
        planted=bool(data["planted"]),
        unit=space.early_stopping.unit,
        gpus_per_trial=space.resources.workers * space.resources.gpus_per_worker,
    )
    if options.retry_failed:
        notes.append(f"{study.retry_failed()} failed trials are tried again")
    return study, notes


def _asked_for(study: Study, options: SearchOptions) -> int:
    """Returns the number of trials asked for, and records it."""
    held: int | None = study.attributes.get("trials")
    limit = options.trials or held or study.space.trials
    limit += options.add_trials or 0
    study.note(trials=limit)
    return limit


def _url(run: Path, options: SearchOptions) -> str:
    """Returns the storage URL: as given, else the one that the run began with, else the run folder's own."""
    if options.storage is not None:
        return options.storage
    held = read_manifest(run).get("storage") if (run / MANIFEST).exists() else None
    return str(held) if held else study_url(run)
