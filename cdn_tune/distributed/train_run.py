"""A train run: one trial in a run folder of its own, trained on this machine or on several workers of a cluster."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cdn_tune.config import Experiment
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.data.mark import Mark, to_mark
from cdn_tune.errors import CdnTuneError, ConfigError
from cdn_tune.training.begin import claim_training
from cdn_tune.training.loop import never
from cdn_tune.training.object_store.sync import fetched, refresh
from cdn_tune.training.object_store.working_copy import place_of
from cdn_tune.training.reports import EpochReport, OnStep, Report, ignore
from cdn_tune.training.runs.checkpoint import LAST
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.training.runs.run_folder import describe_run, locked, read_manifest
from cdn_tune.training.state import epochs_in_all
from cdn_tune.training.step.threads import threads_for
from cdn_tune.training.train_trial import open_data, train_in


@dataclass(frozen=True)
class TrainOptions:
    """How a train run is started."""

    workers: int = 1  # above 1 they are a Ray Train group
    address: str | None = None  # Ray cluster that several workers join; None starts Ray on this machine
    start: Path | None = None  # checkpoint from whose weights a new run starts
    threads: int | None = None  # CPU threads of a worker; of a run that goes on, as many as it began with


@dataclass(frozen=True)
class TrainRun:
    """A train run that is held by this process.

    Attributes:
        folder: Its folder on this machine.
        experiment: What is trained.
        options: How it was started.
        threads: CPU threads of a worker; None where several workers take what their CPUs allow.
        goes_on: Whether it has a state to go on from.
        ended: The last epoch of a run that has nothing left to train, else None.
        planted: Whether its data are planted.
    """

    folder: Path
    experiment: Experiment
    options: TrainOptions
    threads: int | None
    goes_on: bool
    ended: int | None
    planted: Mark

    def train(self, report: Report, on_step: OnStep = ignore, stop: Callable[[], bool] = never) -> str | None:
        """Trains to the last epoch; of a run that has ended the epochs are reported.

        Args:
            report: Called after every epoch; first, of a run that goes on, with the epochs that it has.
            on_step: Called after every step; with several workers a few times a second.
            stop: Called after every step; once it returns true the state is saved, and the training ends.

        Returns:
            A line that tells whether the training is logged where `tracking` says; None if it says nowhere.

        Raises:
            CdnTuneError: If data, cluster or training are at fault.
            KeyboardInterrupt: If `stop` returned true before the last epoch.
        """
        if self.experiment.tracking.mlflow is None:
            self._train(report, on_step, stop)
            return None
        from cdn_tune.training.tracking.tracker import LEAVING_SECONDS
        from cdn_tune.training.tracking.train_tracking import TrainTracking

        tracking = TrainTracking(self.experiment, self.folder)

        def both(done: EpochReport) -> None:
            report(done)
            tracking.report(done)

        try:
            self._train(both, on_step, stop)
        except KeyboardInterrupt:
            tracking.close(LEAVING_SECONDS)
            raise
        except CdnTuneError:
            tracking.close(LEAVING_SECONDS, failed=True)
            raise
        except BaseException:
            tracking.abandon()
            raise
        return tracking.close()

    def _train(self, report: Report, on_step: OnStep, stop: Callable[[], bool]) -> None:
        if self.ended is not None:
            for epoch in read_metrics(self.folder):
                report(EpochReport.read(epoch))
            return
        options = self.options
        if options.workers == 1:
            train_in(self.experiment, self.folder, report, on_step, self.threads, stop)
            return
        from cdn_tune.distributed.launch import train_on_workers  # Ray, which one worker does without

        train_on_workers(
            self.experiment, self.folder, options.workers, report, options.address, on_step, stop, self.threads
        )
        refresh(self.folder)


@contextmanager
def train_run(
    experiment: Experiment,
    run: Path,
    options: TrainOptions | None = None,
    build_clips: Callable[[Experiment], object] = ignore,
) -> Iterator[TrainRun]:
    """Begins a train run, or opens it again, and holds its folder for the block; `TrainRun.train` trains it.

    Args:
        experiment: What is trained.
        run: The run folder, or its URL on an object store.
        options: How it is started.
        build_clips: Builds the node's clip cache where that is to be shown; else it is built when the data are opened.

    Raises:
        CdnTuneError: If an option or the data are wrong, the folder is in use or holds another run, or the checkpoint
            to start from does not fit.
    """
    options = options or TrainOptions()
    if options.address is not None and options.workers == 1:
        raise ConfigError("--address ADDR: one worker trains on this machine; add --workers N, or drop --address")
    if experiment.train.batch_size < options.workers:
        batch = f"train.batch_size={experiment.train.batch_size}"
        raise ConfigError(f"--workers {options.workers}: more workers than {batch}")
    run = fetched(run)
    with locked(run):
        build_clips(experiment)
        # Errors of the data are raised before anything is written.
        open_data(experiment.data, experiment.model.inputs.sequences)
        facts, threads = fingerprint(experiment.data), options.threads
        manifest = describe_run("train", experiment, facts) | {
            "threads": threads or threads_for(experiment),
            "run_id": secrets.token_hex(8),  # with the manifest, so that whoever goes on has the same one
        }
        resumed = claim_training(run, experiment, manifest, options.start)
        if options.workers == 1:  # rounding depends on it
            threads = threads or read_manifest(run).get("threads")
        has_state = _has_state(run)
        last = next(reversed(read_metrics(run)), None)
        end = epochs_in_all(last["epoch"], last["best_epoch"], experiment.train) if last else None
        ended = end if last and last["epoch"] == end and has_state else None
        yield TrainRun(run, experiment, options, threads, resumed and has_state, ended, to_mark(facts["planted"]))


def _has_state(run: Path) -> bool:
    """Returns whether a state exists to go on from, here or on the run's object store."""
    place = place_of(run)
    return (run / LAST).exists() or (place is not None and place.store.entry(str(LAST)) is not None)
