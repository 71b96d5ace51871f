"""A search: opens its study, has an engine run its trials, and returns the leaderboard and the best checkpoints."""

import logging
import secrets
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.config.secrets import without_secrets
from cdn_tune.data.dataset import load_readings
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.data.mark import to_mark
from cdn_tune.data.splits import coarse
from cdn_tune.data.videos.making import from_plain
from cdn_tune.errors import ConfigError, RunError, SearchError
from cdn_tune.training.loop import never
from cdn_tune.training.object_store.sync import fetched
from cdn_tune.training.object_store.working_copy import shown
from cdn_tune.training.runs.run_folder import (
    EXPERIMENT,
    MANIFEST,
    SPACE,
    changed_files,
    claim,
    describe_run,
    locked,
    read_manifest,
)
from cdn_tune.training.train_trial import train_in
from cdn_tune.tuning.checkpoints.checkpoint_files import CheckpointFiles
from cdn_tune.tuning.checkpoints.retention import Retention, keep_best
from cdn_tune.tuning.driver import Driver
from cdn_tune.tuning.engine.door import Engine
from cdn_tune.tuning.engine.ray.audit import Audit
from cdn_tune.tuning.engine.ray.engine import RayEngine
from cdn_tune.tuning.layout import StopFile, study_url
from cdn_tune.tuning.planning.preflight import check_confirm, largest_checkpoint, most_steps, preflight
from cdn_tune.tuning.progress import OnChange, Progress
from cdn_tune.tuning.results.folder import FolderTrials
from cdn_tune.tuning.results.record import study_errors, unknown_fault
from cdn_tune.tuning.storage.check import check_shared
from cdn_tune.tuning.storage.named import is_same_storage, is_there, storage_of
from cdn_tune.tuning.storage.open import open_storage
from cdn_tune.tuning.study.candidates import GB, Candidates
from cdn_tune.tuning.study.ranking import ranking
from cdn_tune.tuning.study.soundness import check_study
from cdn_tune.tuning.study.study import Study
from cdn_tune.tuning.tracking import SearchTracking
from cdn_tune.tuning.warm_start import learn_from

_LOG = logging.getLogger(__name__)
BUDGETS = frozenset({"trials", "budget", "confirm", "keep", "max_failures", "disk_budget_gb", "resources"})


@dataclass(frozen=True)
class SearchOptions:
    """How a search is started."""

    trials: int | None = None  # in all, in place of the space's; may be raised to go on with a finished search
    add_trials: int | None = None  # so many more than were requested before
    address: str | None = None  # Ray cluster to join; None starts Ray on this machine
    storage: str | None = None  # Optuna storage URL of the study; the run folder's own journal if None
    resume: bool = False  # whether the run folder must hold a search already
    retry_failed: bool = False  # whether failed trials are tried again
    warm_start: tuple[Path, ...] = ()  # runs whose results are learned from, at the search's first start
    stop: Callable[[], bool] = never  # once it returns True running trials save a checkpoint, and the search ends
    train: Callable[..., object] = train_in  # trains a trial; takes what `train_in` takes
    engine: Engine | None = None  # runs the trials; Ray Tune if None


@dataclass(frozen=True)
class SearchResult:
    """How a search ended."""

    rows: list[dict[str, Any]]  # the leaderboard
    kept: list[Path]  # checkpoints of the best trials, best first
    was_finished: bool  # whether the run folder held the finished search already; nothing was run
    interrupted: bool  # whether it was stopped before its last trial; the same command goes on
    ended_by: str | None = None  # the budget that ended it; None if all trials were run
    audit: Audit | None = None  # what it left behind on the cluster; None if nothing was run there
    notes: list[str] = field(default_factory=list)  # lines for the user
    tracked: bool = False  # whether it is logged in MLflow, all of it


def search(
    space: SearchSpace, experiment: Experiment, run: Path, on_change: OnChange, options: SearchOptions | None = None
) -> SearchResult:
    """Runs a search, or goes on with the one that the run folder holds.

    Args:
        space: What is searched, and how.
        experiment: The base experiment under all fixed overrides.
        run: The run folder, or the URL of one on an object store; on a cluster, reachable from every node.
        on_change: Called in the driver whenever a trial has reported or ended.
        options: How it is started.

    Raises:
        CdnTuneError: If data, run folder, storage, cluster or every single trial is at fault.
    """
    options = options or SearchOptions()
    run = fetched(run)
    if options.resume and not (run / MANIFEST).exists():
        raise RunError(f"--resume: {run} holds no search; check --run, or leave --resume out to start one")
    with locked(run), _disk_errors(run):
        engine = options.engine or RayEngine(space, experiment, run, options.address, options.train)
        study, notes = open_study(space, experiment, run, options, engine.clock)
        requested: int = options.trials or study.attributes.get("trials") or space.trials
        limit = requested + (options.add_trials or 0)
        check_confirm(space, limit)
        study.note(trials=limit)
        budget = None if space.disk_budget_gb is None else space.disk_budget_gb * GB
        keeping = (space.keep, budget, study.directions if len(study.directions) > 1 else ())
        driver = Driver(
            study,
            limit,
            Retention(CheckpointFiles(run), *keeping),
            engine.clock,
            stop_file := StopFile(run),
            options.stop,
            largest_checkpoint=0 if budget is None else largest_checkpoint(study.candidates),
        )
        progress = Progress(driver, run, experiment, on_change, engine.clock)
        driver.observers.append(progress)
        tracking = None
        if experiment.tracking.mlflow is not None:
            driver.observers.append(tracking := SearchTracking(driver, run, experiment, engine.clock))
        was_finished = driver.is_finished
        with tracking or nullcontext():
            try:
                if not was_finished:
                    stop_file.lower()
                    with engine.started() as nodes:
                        notes += preflight(
                            space, study.candidates, run, storage_of(run, options.storage), nodes, options.train, limit
                        )
                        driver.start()
                        engine.run(driver)
            finally:
                driver.close()
                kept = keep_best(run, study.entries(), *keeping)  # once more over everything
                progress.write()
                progress.show()
                stop_file.lower()
            rows = progress.rows()
            interrupted = not driver.is_finished and driver.ended_by is None
            if tracking is not None:
                failed = study.halted or (driver.is_finished and not ranking(study.trials()))
                state = "failed" if failed else "unfinished" if interrupted else "complete"
                notes.append(tracking.close(state, kept))
        if (missing := len(study.unconfirmed())) and driver.ended_by is not None:
            notes.append(
                f"{missing} of {space.confirm.trials} confirmations were not begun; the mean is over the others"
            )
    if study.halted:
        raise RunError(f"{study.halted}; the same command then goes on")
    if driver.is_finished and not ranking(study.trials()):
        reasons = "; ".join(sorted({str(row["reason"]) for row in rows}))
        raise SearchError(f"{run}: all {len(rows)} trials failed: {reasons}")
    tracked = tracking is not None and tracking.is_complete
    return SearchResult(rows, kept, was_finished, interrupted, driver.ended_by, engine.left_behind, notes, tracked)


@contextmanager
def _disk_errors(run: Path) -> Iterator[None]:
    """Has a disk that fails in the block, or a run folder that goes, be one line.

    Raises:
        RunError: With the remedy.
    """
    try:
        yield
    except OSError as error:
        if not (run / MANIFEST).exists():
            raise RunError(
                f"{run}: was deleted or moved while the search ran; put it back, and the same command goes on, or "
                "search in another --run folder"
            ) from error
        if error.filename is None:
            raise
        raise RunError(
            f"{error.filename}: {error.strerror}; make room or mend the file system, and the same command goes on"
        ) from error


def open_study(
    space: SearchSpace, experiment: Experiment, run: Path, options: SearchOptions, clock: Callable[[], float]
) -> tuple[Study, list[str]]:
    """Opens the study of a locked run folder, or begins it; returns it and notes for the user.

    Raises:
        CdnTuneError: If the data, the folder or the storage are at fault or hold something else.
    """
    url = storage_of(run, options.storage)
    check_shared(run, url)
    reads = space.reads(experiment.model.name)
    loaded = load_readings(experiment.data, ("train", "val"), reads)
    splits = loaded.get(experiment.model.inputs.sequences) or loaded[reads[0]]
    if remark := coarse(len(splits["val"])):
        _LOG.warning("%s", remark)
    data = fingerprint(experiment.data)
    manifest = describe_run("search", experiment, data) | {"run_id": secrets.token_hex(8)}
    if url != study_url(run):
        manifest["storage"] = without_secrets(url)
    identity = {key: value for key, value in space.plain().items() if key not in BUDGETS}
    has_begun = _claim(run, manifest, {EXPERIMENT: experiment.plain(), SPACE: identity})
    held = read_manifest(run)
    if not is_same_storage(held.get("storage", ""), manifest.get("storage", "")):
        given, recorded = (each.get("storage", "the run folder's own") for each in (manifest, held))
        raise RunError(f"--storage {given}: the study of {run} lies in another storage ({recorded}); name that one")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    longest = most_steps(space, Candidates(space, experiment).by_family().values())
    folder = FolderTrials.read(run)
    if not is_there(url):
        _refuse_unknown(run, folder, [])  # before a study is begun
    with study_errors(run, url) if has_begun else nullcontext():
        storage = open_storage(url, sole_writer=url == study_url(run))
        study = Study(storage, space, experiment, longest=longest, clock=clock)
        check_study(space, experiment, study.optuna.get_trials(deepcopy=False), study.directions, study.attributes)
    _refuse_unknown(run, folder, study.entries())
    owner = study.attributes.get("run_id")
    if owner not in (None, held.get("run_id")):
        raise RunError(
            f"{without_secrets(url)}: already holds a study named {space.name}, of another run; "
            "choose another `name` in the search space, or another --storage"
        )
    notes = []
    if owner is None:
        notes += learn_from(options.warm_start, study, from_plain(data["making"]) if "making" in data else None)
        study.begin()
    elif options.warm_start:
        raise ConfigError(f"--warm-start: {run} has begun already; results are learned from at the first start only")
    study.note(
        run_id=held.get("run_id"),
        metric=experiment.eval.metric,
        objectives=list(study.objectives.names),
        dataset=experiment.data.dataset,
        planted=to_mark(data["planted"]),
        unit=space.early_stopping.unit,
        gpus_per_trial=space.resources.workers * space.resources.gpus_per_worker,
    )
    if options.retry_failed:
        notes.append(f"{study.retry_failed()} failed trials are tried again")
    return study, notes


def _claim(run: Path, manifest: dict[str, Any], configurations: dict[str, dict[str, Any]]) -> bool:
    """As `run_folder.claim`; the remedy for another search than the folder's is to learn from that one."""
    try:
        return claim(run, manifest, configurations)
    except RunError as error:
        held = read_manifest(run)
        if held["kind"] != "search" or changed_files(held.get("data", {}), manifest["data"]):
            raise
        raise RunError(f"{error}, where --warm-start {shlex.quote(shown(run))} learns from its results") from None


def _refuse_unknown(run: Path, folder: FolderTrials, entries: list[FrozenTrial]) -> None:
    """Raises `RunError` if a run folder shows trials that its study does not know: they would be run again."""
    if unknown := folder.unknown(entries):
        raise RunError(unknown_fault(run, unknown))
