"""`cdn_tune.train`: one trial."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cdn_tune.api.arguments import Count, PathLike, checked, path_of
from cdn_tune.api.background import Background
from cdn_tune.api.run import Run
from cdn_tune.compat import check_versions
from cdn_tune.config import load_experiment
from cdn_tune.config.check import without_effect
from cdn_tune.config.load import ExperimentLike
from cdn_tune.distributed.address import prepare
from cdn_tune.distributed.train_run import TrainOptions, train_run
from cdn_tune.training.object_store.sync import fetched_file
from cdn_tune.training.reports import EpochReport, StepReport, ignore

_LOG = logging.getLogger(__name__)


@checked
def train(
    experiment: ExperimentLike,
    overrides: Mapping[str, Any] | None = None,
    *,
    run: PathLike | None = None,
    workers: Count = 1,
    address: str | None = None,
    start: PathLike | None = None,
    threads: Count | None = None,
    on_epoch: Callable[[EpochReport], object] | None = None,
    on_step: Callable[[StepReport], object] | None = None,
    progress: bool = False,
) -> Run:
    """Trains one trial, as `cdn-tune train` does, and returns its run; the same call again goes on where it stopped.

    It takes no signal handlers and prints nothing unless asked. Ctrl-C (in a notebook: interrupting the kernel) ends
    the training after the step under way, with a checkpoint, and raises `KeyboardInterrupt`; a second one leaves at
    once.

    Args:
        experiment: The path of a YAML file or of a shipped experiment, such as ``"demo/small"``; its nested values; or
            an `Experiment`.
        overrides: Dotted keys with values, such as ``{"data.root": "data/planted", "optim.lr": 3e-4}``.
        run: The run folder, or its URL on an object store; ``runs/<name>`` if None.
        workers: Training workers; above 1 they are a Ray Train group, of the Ray session that is already there if any.
        address: Ray cluster that several workers join: ``"auto"`` or ``HOST:PORT``.
        start: A checkpoint from whose weights a new run starts.
        threads: CPU threads of a worker; if None one per million parameters, at most one per core. A run goes on with
            as many as it began with.
        on_epoch: Called after every epoch; first, of a run that goes on, with the epochs that it has. If it returns
            True, the training ends in order, with a checkpoint, and its run is returned.
        on_step: The same after every step; of several workers a few times a second.
        progress: Whether to print a line per epoch (in a terminal a bar) to standard error.

    Returns:
        The run, as `open_run` opens it.

    Raises:
        CdnTuneError: If experiment, data, run folder, cluster or training are at fault: the command line's line.
        KeyboardInterrupt: If it was interrupted; its state is saved.
    """
    check_versions()
    loaded = load_experiment(experiment, overrides)
    folder = Path("runs") / loaded.name if run is None else path_of(run, "run")
    checkpoint = None if start is None else fetched_file(path_of(start, "start"))
    if idle := without_effect(loaded):
        _LOG.warning("%s", idle)
    if address is not None:
        prepare(address)
    background = Background()
    report, step = background.callback(on_epoch), ignore if on_step is None else background.callback(on_step)

    def work() -> None:
        if progress:
            from cdn_tune.cli.show.progress import TrainProgress, build_clips
        options = TrainOptions(workers, address, checkpoint, threads)
        with train_run(loaded, folder, options, build_clips if progress else ignore) as trial, ExitStack() as stack:
            each, every = report, step
            if progress and trial.ended is None:
                shown = stack.enter_context(TrainProgress(loaded.eval.metric, loaded.train.epochs))
                each, every = _both(shown.on_epoch, report), _both(shown.on_step, step)
            logged = trial.train(each, every, background.stop)
        if logged is not None:
            _LOG.info("%s", logged)

    background.run(work)
    return Run(folder)


def _both(first: Callable[[Any], None], second: Callable[[Any], None]) -> Callable[[Any], None]:
    def call(argument: Any) -> None:
        first(argument)
        second(argument)

    return call
