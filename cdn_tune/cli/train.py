"""`cdn-tune train`: one trial on this machine, or on several workers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from cdn_tune.cli.app import app
from cdn_tune.cli.options import Address, Json, Overrides, RunOption
from cdn_tune.cli.show.output import GOES_ON, GracefulStop, err, out, print_json, print_line, print_note, terminable
from cdn_tune.errors import ConfigError

if TYPE_CHECKING:
    from cdn_tune.config import Experiment


@app.command(epilog="Example: cdn-tune train experiments/charades/CDN-16x16-K5L8-pool.yaml data.root=/data/charades")
def train(
    experiment: Annotated[str, Argument(metavar="EXPERIMENT", help="Experiment YAML, or a shipped one's path.")],
    overrides: Overrides = None,
    workers: Annotated[int, Option(min=1, help="Training workers; above 1 they are a Ray Train group.")] = 1,
    run: RunOption = None,
    address: Address = None,
    plan: Annotated[
        bool, Option("--plan", help="Print parameters, memory, steps and time, measured in a few steps, and stop.")
    ] = False,
    json: Json = False,
) -> None:
    """Train one trial. The same command again goes on where it stopped.

    Ctrl-C once ends it after the step under way, with a checkpoint; twice at once.
    """
    from cdn_tune.config import load_experiment, parse_overrides

    if json and not plan:
        raise ConfigError("--json prints what --plan finds; add --plan, or read RUN/metrics.jsonl after training")
    with terminable("" if plan else GOES_ON):
        loaded = load_experiment(experiment, parse_overrides(overrides or []))
        if plan:
            _print_plan(loaded, json)
        else:
            _train(loaded, workers, run or Path("runs") / loaded.name, address)


def _print_plan(experiment: Experiment, as_json: bool) -> None:
    from cdn_tune.cli.show.plan import plan_plain, plan_table
    from cdn_tune.cli.show.progress import build_clips
    from cdn_tune.training.plan import make_plan
    from cdn_tune.training.train_trial import open_data

    build_clips(experiment.data)
    with err.status("measuring a few steps"):
        plan = make_plan(experiment, open_data(experiment.data))
    if as_json:
        print_json(plan_plain(plan))
    else:
        out.print(plan_table(plan, experiment))


def _train(experiment: Experiment, workers: int, run: Path, address: str | None) -> None:
    from cdn_tune.cli.show.progress import TrainProgress, build_clips
    from cdn_tune.cli.show.tables import experiment_line, trained_table
    from cdn_tune.data.fingerprint import fingerprint
    from cdn_tune.training.object_store.sync import fetched, refresh
    from cdn_tune.training.object_store.working_copy import shown
    from cdn_tune.training.runs.checkpoint import BEST
    from cdn_tune.training.runs.records import read_metrics
    from cdn_tune.training.runs.run_folder import EXPERIMENT, claim, describe_run, locked
    from cdn_tune.training.train_trial import open_data, train_in

    if address is not None and workers == 1:
        raise ConfigError("--address ADDR: one worker trains on this machine; add --workers N, or drop --address")
    run = fetched(run)
    with locked(run):
        build_clips(experiment.data)
        open_data(experiment.data)  # errors of the data are raised before anything is written
        facts = fingerprint(experiment.data)
        resumed = claim(run, describe_run("train", experiment, facts), {EXPERIMENT: experiment.plain()})
        doing = "going on with" if resumed and _has_state(run) else "training"
        print_note(f"{doing} {experiment.name} in {shown(run)}")
        print_note(experiment_line(experiment))
        epochs = read_metrics(run)
        if epochs and _has_state(run) and epochs[-1]["epoch"] >= epochs[-1]["epochs"]:
            print_note("this run is finished: nothing to do")
        else:
            with TrainProgress(experiment.eval.metric, experiment.train.epochs) as progress, GracefulStop() as stop:
                if workers == 1:
                    train_in(experiment, run, progress.on_epoch, progress.on_step, stop=stop)
                else:
                    from cdn_tune.distributed.launch import train_on_workers

                    if experiment.train.batch_size < workers:
                        batch = f"train.batch_size={experiment.train.batch_size}"
                        raise ConfigError(f"--workers {workers}: more workers than {batch}")
                    train_on_workers(experiment, run, workers, progress.on_epoch, address, progress.on_step, stop)
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
