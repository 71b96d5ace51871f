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
from cdn_tune.errors import ConfigError

if TYPE_CHECKING:
    from cdn_tune.config import Experiment


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
            _train(loaded, workers, run or Path("runs") / loaded.name, start, threads, address)


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


def _train(
    experiment: Experiment, workers: int, run: Path, start: Path | None, threads: int | None, address: str | None
) -> None:
    from cdn_tune.cli.show.progress import TrainProgress, build_clips
    from cdn_tune.cli.show.tables import experiment_line, trained_table
    from cdn_tune.data.fingerprint import fingerprint
    from cdn_tune.training.begin import claim_training
    from cdn_tune.training.object_store.sync import fetched, refresh
    from cdn_tune.training.object_store.working_copy import shown
    from cdn_tune.training.runs.checkpoint import BEST
    from cdn_tune.training.runs.records import read_metrics
    from cdn_tune.training.runs.run_folder import describe_run, locked, read_manifest
    from cdn_tune.training.state import epochs_in_all
    from cdn_tune.training.step.threads import threads_for
    from cdn_tune.training.train_trial import open_data, train_in

    if address is not None and workers == 1:
        raise ConfigError("--address ADDR: one worker trains on this machine; add --workers N, or drop --address")
    run = fetched(run)
    with locked(run):
        build_clips(experiment)
        # Errors of the data are raised before anything is written.
        open_data(experiment.data, experiment.model.inputs.sequences)
        facts = fingerprint(experiment.data)
        manifest = describe_run("train", experiment, facts) | {"threads": threads or threads_for(experiment)}
        resumed = claim_training(run, experiment, manifest, start)
        if workers == 1:  # rounding depends on it
            threads = threads or read_manifest(run).get("threads")
        doing = "going on with" if resumed and _has_state(run) else "training"
        print_note(f"{doing} {experiment.name} in {shown(run)}")
        print_note(experiment_line(experiment) + (f", {threads} CPU threads" if threads else ""))
        last = next(reversed(read_metrics(run)), None)
        end = epochs_in_all(last["epoch"], last["best_epoch"], experiment.train) if last else None
        if last and last["epoch"] == end and _has_state(run):
            early = last["epoch"] < experiment.train.epochs
            why = f"train.patience ended it after epoch {end}" if early else "a larger train.epochs makes it longer"
            print_note(f"this run is finished: nothing to do ({why})")
        else:
            with TrainProgress(experiment.eval.metric, experiment.train.epochs) as progress, GracefulStop() as stop:
                if workers == 1:
                    train_in(experiment, run, progress.on_epoch, progress.on_step, threads, stop)
                else:
                    from cdn_tune.distributed.launch import train_on_workers

                    if experiment.train.batch_size < workers:
                        batch = f"train.batch_size={experiment.train.batch_size}"
                        raise ConfigError(f"--workers {workers}: more workers than {batch}")
                    report, on_step = progress.on_epoch, progress.on_step
                    train_on_workers(experiment, run, workers, report, address, on_step, stop, threads)
                    refresh(run)
    planted, epochs = bool(facts["planted"]), read_metrics(run)
    out.print(trained_table(experiment, epochs, run, planted))
    value = f"{epochs[-1]['best_value']:.4f} after epoch {epochs[-1]['best_epoch']}"
    print_line(f"best val {experiment.eval.metric} {value}{' (planted data)' if planted else ''}")
    print_line(f"best checkpoint: {shown(run / BEST)}")
    print_line(f"test split: cdn-tune evaluate {shlex.quote(shown(run))}")


def _has_state(run: Path) -> bool:
    """Returns whether a state exists to go on from, here or on the run's object store."""
    from cdn_tune.training.object_store.working_copy import place_of
    from cdn_tune.training.runs.checkpoint import LAST

    place = place_of(run)
    return (run / LAST).exists() or (place is not None and place.store.entry(str(LAST)) is not None)
