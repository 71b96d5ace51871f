"""`cdn-tune train`: one trial on this machine, or on several workers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from cdn_tune.cli.app import app
from cdn_tune.cli.options import Address, Json, Overrides, RunOption
from cdn_tune.cli.show.output import (
    GOES_ON,
    GracefulStop,
    err,
    out,
    print_json,
    print_line,
    print_note,
    terminable,
    warn,
)
from cdn_tune.data.mark import marked
from cdn_tune.errors import ConfigError

if TYPE_CHECKING:
    from cdn_tune.config import Experiment
    from cdn_tune.distributed.train_run import TrainOptions


@app.command(epilog="Example: cdn-tune train experiments/charades/CDN-16x16-K5L8-pool.yaml data.root=/data/charades")
def train(
    experiment: Annotated[str, Argument(metavar="EXPERIMENT", help="Experiment YAML, or a shipped one's path.")],
    overrides: Overrides = None,
    workers: Annotated[int, Option(min=1, help="Training workers; above 1 they are a Ray Train group.")] = 1,
    run: RunOption = None,
    start: Annotated[
        Path | None,
        Option("--from", metavar="CHECKPOINT", help="Start a new run from the weights of this checkpoint."),
    ] = None,
    threads: Annotated[
        int | None,
        Option(
            min=1,
            help="CPU threads of a worker; a run goes on with as many as it began with.",
            show_default="one per million parameters, at most one per core",
        ),
    ] = None,
    address: Address = None,
    plan: Annotated[
        bool, Option("--plan", help="Print parameters, memory, steps and time, measured in a few steps, and stop.")
    ] = False,
    json: Json = False,
) -> None:
    """Train one trial. The same command again goes on where it stopped.

    With a larger train.epochs a run becomes longer, unless its learning rates depend on the number of epochs.

    Ctrl-C once ends it after the step under way, with a checkpoint; twice at once.
    """
    from cdn_tune.config import load_experiment, parse_overrides
    from cdn_tune.config.check import without_effect

    if json and not plan:
        raise ConfigError("--json prints what --plan finds; add --plan, or read RUN/metrics.jsonl after training")
    with terminable("" if plan else GOES_ON):
        loaded = load_experiment(experiment, parse_overrides(overrides or []))
        if idle := without_effect(loaded):
            warn(idle)
        if plan:
            _print_plan(loaded, threads, json)
        else:
            from cdn_tune.distributed.train_run import TrainOptions

            options = TrainOptions(workers, address, start, threads)
            _train(loaded, run or Path("runs") / loaded.name, options)


def _print_plan(experiment: Experiment, threads: int | None, as_json: bool) -> None:
    from cdn_tune.cli.show.plan import plan_plain, plan_table
    from cdn_tune.cli.show.progress import build_clips
    from cdn_tune.training.plan import make_plan
    from cdn_tune.training.train_trial import open_data

    build_clips(experiment)
    with err.status("measuring a few steps"):
        plan = make_plan(experiment, open_data(experiment.data, experiment.model.inputs.sequences), threads=threads)
    if as_json:
        print_json(plan_plain(plan))
    else:
        out.print(plan_table(plan, experiment))


def _train(experiment: Experiment, run: Path, options: TrainOptions) -> None:
    from cdn_tune.cli.show.progress import TrainProgress, build_clips
    from cdn_tune.cli.show.tables import experiment_line, trained_table
    from cdn_tune.distributed.train_run import train_run
    from cdn_tune.training.object_store.working_copy import shown
    from cdn_tune.training.reports import ignore
    from cdn_tune.training.runs.checkpoint import BEST
    from cdn_tune.training.runs.records import read_metrics

    with train_run(experiment, run, options, build_clips) as trial:
        run = trial.folder
        print_note(f"{'going on with' if trial.goes_on else 'training'} {experiment.name} in {shown(run)}")
        print_note(experiment_line(experiment) + (f", {trial.threads} CPU threads" if trial.threads else ""))
        if trial.ended is not None:
            early = trial.ended < experiment.train.epochs
            why = (
                f"train.patience ended it after epoch {trial.ended}"
                if early
                else "a larger train.epochs makes it longer"
            )
            print_note(f"this run is finished: nothing to do ({why})")
            logged = trial.train(ignore)
        else:
            with TrainProgress(experiment.eval.metric, experiment.train.epochs) as progress, GracefulStop() as stop:
                logged = trial.train(progress.on_epoch, progress.on_step, stop)
    if logged is not None:
        print_note(logged)
    epochs = read_metrics(run)
    out.print(trained_table(experiment, epochs, run, trial.planted))
    value = f"{epochs[-1]['best_value']:.4f} after epoch {epochs[-1]['best_epoch']}"
    print_line(f"best val {experiment.eval.metric} {value}{f' ({marked(trial.planted)})' if trial.planted else ''}")
    print_line(f"best checkpoint: {shown(run / BEST)}")
    print_line(f"test split: cdn-tune evaluate {shlex.quote(shown(run))}")
