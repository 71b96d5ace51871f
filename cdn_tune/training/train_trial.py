"""Opens the data of an experiment and trains it; a warm process opens the same data once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, Timeout

from cdn_tune.config import DataConfig, Experiment
from cdn_tune.data.annotations import Split
from cdn_tune.data.dataset import MomentDataset, load_splits
from cdn_tune.data.fingerprint import is_planted
from cdn_tune.errors import FolderHeld, RunError
from cdn_tune.training.loop import TrainResult, never, train
from cdn_tune.training.object_store.trial_sync import Attempt, TrialSync
from cdn_tune.training.object_store.working_copy import TRAINING_LOCK, place_of
from cdn_tune.training.reports import Decisions, EpochReport, OnStep, Report, Stop, ignore
from cdn_tune.training.runs.files import write_errors
from cdn_tune.training.step.process_group import this_world
from cdn_tune.training.step.threads import threads_for, torch_threads

_DYING_SECONDS = 60.0  # how long a process whose driver was killed may live on


@lru_cache(maxsize=2)
def open_data(config: DataConfig, sequences: bool = False) -> Mapping[Split, MomentDataset]:
    """Opens the train and val splits, as clips or as sequences; the trials that follow in this process share them.

    Raises:
        DataError: If the data cannot be used.
    """
    return load_splits(config, ("train", "val"), sequences=sequences)


def train_in(
    experiment: Experiment,
    folder: Path,
    report: Report,
    on_step: OnStep = ignore,
    threads: int | None = None,
    stop: Callable[[], bool | Stop] = never,
    decisions: Decisions | None = None,
) -> TrainResult:
    """Trains an experiment in a folder; called on every worker of the trial.

    Args:
        experiment: What to train.
        folder: The trial's folder.
        report: Called by worker 0 after every epoch.
        on_step: Called by worker 0 after every step.
        threads: CPU threads of this worker; as many as `threads_for` returns if None.
        stop: Called after every step, as `loop.train` describes.
        decisions: With which reports a search may stop or pause the trial; none if None.

    Raises:
        CdnTuneError: If the data, the folder's checkpoint or the training is at fault.
    """
    with torch_threads(threads or threads_for(experiment)), _alone(folder, report) as report:
        splits, planted = open_data(experiment.data, experiment.model.inputs.sequences), is_planted(experiment.data)
        saving = _claim(folder)
        if saving is None:
            return train(experiment, folder, report, splits, on_step, planted, stop, None, decisions)
        history: list[EpochReport] = []

        def report_recorded(done: EpochReport) -> None:
            history.append(done)
            if decisions is not None and decisions.may_come(history):  # the report may not return
                saving.send_metrics()
            report(done)

        try:
            result = train(experiment, folder, report_recorded, splits, on_step, planted, stop, saving, decisions)
        except KeyboardInterrupt:
            saving.finish()
            raise
        except Exception as error:
            if not isinstance(error, RunError):  # of the disk or the store
                with suppress(RunError):  # the first error is the cause
                    saving.send_metrics()
            raise
        saving.finish()
        return result


def _claim(folder: Path) -> Attempt | TrialSync | None:
    """Claims a trial, on worker 0; a trial on an object store is fetched on every worker's machine.

    Returns:
        What is called around every checkpoint on worker 0; None on the others.
    """
    world = this_world()
    place, attempt = place_of(folder), Attempt(folder)
    if place is None:
        if not world.is_main:
            return None
        attempt.claim()
        return attempt
    trial = TrialSync(place, folder, attempt)
    position = trial.begin(alone=world.size == 1) if world.is_main else None
    position = world.gather(position)[0]
    if world.is_main:
        return trial
    trial.follow(position)
    return None


@contextmanager
def _alone(folder: Path, report: Report) -> Iterator[Report]:
    """Holds a trial's folder on worker 0: a process whose driver was killed may train there for a while yet.

    Yields what reports in its place: the folder is free while a report is made, which may not return. Ray Tune stops
    a trial there, and keeps its thread until the process is used again; meanwhile another one may go on with the trial.

    Raises:
        FolderHeld: If another process goes on training there.
    """
    if not this_world().is_main:
        yield report
        return
    lock = FileLock(folder / TRAINING_LOCK, timeout=_DYING_SECONDS)

    def hold() -> None:
        with write_errors(folder / TRAINING_LOCK):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout:
                raise FolderHeld(f"{folder}: another process trains this trial; wait for it, or end it") from None

    def report_released(done: EpochReport) -> None:
        lock.release()
        report(done)
        hold()

    hold()
    try:
        yield report_released
    finally:
        lock.release()
