"""What the commands do, in words of the packages below; imported when a command runs, so that --help is instant."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.progress import Progress

from cdn_tune.config import Experiment, load_experiment, load_space, parse_overrides
from cdn_tune.console.data_commands import build_clips
from cdn_tune.console.interrupt import GentleStop
from cdn_tune.console.output import GOES_ON, err, one_line_errors, out, terminable
from cdn_tune.console.progress import TrainProgress
from cdn_tune.console.tables import experiment_line
from cdn_tune.console.trained import trained_table
from cdn_tune.data.annotations import Split
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.errors import ConfigError
from cdn_tune.training.loop import BEST, LAST
from cdn_tune.training.object_store.sync import fetched, refresh
from cdn_tune.training.object_store.working_copy import place_of, shown, url_of
from cdn_tune.training.runs.manifest import describe_run
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.training.runs.run_folder import EXPERIMENT, claim, locked
from cdn_tune.training.train_trial import open_data, train_in

DEMO_SPACE = "quick.yaml"


def run_train(experiment_path: str, overrides: list[str], workers: int, run: Path | None, address: str | None) -> None:
    """`cdn-tune train`."""
    with one_line_errors(GOES_ON), terminable():
        experiment = load_experiment(experiment_path, parse_overrides(overrides))
        if address is not None and workers == 1:
            raise ConfigError("--address ADDR: one worker trains on this machine; add --workers N, or drop --address")
        run = fetched(run or Path("runs") / experiment.name)
        with locked(run):
            build_clips(experiment.data)
            open_data(experiment.data)  # what is wrong with the data is said before anything is written
            facts = fingerprint(experiment.data)
            resumed = claim(run, describe_run("train", experiment, facts), {EXPERIMENT: experiment.plain()})
            goes_on = resumed and _has_state(run)
            err.print(f"{'going on with' if goes_on else 'training'} {experiment.name} in {shown(run)}", markup=False)
            err.print(experiment_line(experiment), markup=False)
            if _is_finished(run):
                err.print("this run is finished: nothing to do", markup=False)
            else:
                with TrainProgress(experiment.eval.metric, experiment.train.epochs) as progress, GentleStop() as stop:
                    if workers == 1:
                        train_in(experiment, run, progress.on_epoch, progress.on_step, stop=stop)
                    else:
                        _train_group(experiment, run, workers, address, progress, stop)
                        refresh(run)
        _print_trained(experiment, run, planted=bool(facts["planted"]))


def run_plan(experiment_path: str, overrides: list[str]) -> None:
    """`cdn-tune train --plan`."""
    from cdn_tune.console.plan import plan_table
    from cdn_tune.training.plan import make_plan

    with one_line_errors(), terminable():
        experiment = load_experiment(experiment_path, parse_overrides(overrides))
        build_clips(experiment.data)
        splits = open_data(experiment.data)
        with err.status("measuring a few steps"):
            plan = make_plan(experiment, splits)
        out.print(plan_table(plan, experiment))


def run_evaluate(run: Path | None, overrides: list[str], **options: Any) -> None:
    """`cdn-tune evaluate`; options are those of `evaluation_commands.evaluate`."""
    from cdn_tune.console.evaluation_commands import evaluate

    with one_line_errors("the same command does what is left of it"), terminable():
        if run is None:
            raise ConfigError("name a run folder, or a file of predictions with --predictions FILE")
        evaluate(run, parse_overrides(overrides), **options)


def run_score(
    predictions: Path,
    run: Path | None,
    data: Path | None,
    dataset: str | None,
    split: Split,
    overrides: list[str],
    output: Path | None,
) -> None:
    """`cdn-tune evaluate --predictions`."""
    from cdn_tune.console.evaluation_commands import score

    with one_line_errors():
        # Where no run is asked for, the first override stands in its place.
        score(predictions, data, dataset, split, [*([] if run is None else [str(run)]), *overrides], output)


def run_compare(first: Path, second: Path, as_json: bool) -> None:
    """`cdn-tune compare`."""
    from cdn_tune.console.evaluation_commands import compare

    with one_line_errors():
        compare(first, second, as_json)


def run_demo(run: Path, trials: int | None) -> None:
    """`cdn-tune demo`."""
    from cdn_tune.console.evaluation_commands import evaluate
    from cdn_tune.console.report import write_report
    from cdn_tune.console.search import search_and_print
    from cdn_tune.data.planted import plant
    from cdn_tune.report.page import REPORT

    with one_line_errors(GOES_ON), terminable():
        _refuse_url(run, "--run")
        data = run.parent / f"{run.name}-data"
        err.print(f"1/4 planting a dataset in {data}", markup=False)
        with Progress(console=err, transient=True) as progress:
            task = progress.add_task("planting")
            plant(data, progress=lambda done, total: progress.update(task, completed=done, total=total))
        err.print("2/4 searching", markup=False)
        space, experiment = load_space(DEMO_SPACE, {"data.root": str(data)})
        search_and_print(space, experiment, run, trials=trials)
        err.print("3/4 evaluating the winner on the test split", markup=False)
        evaluate(run, {})
        err.print("4/4 building the report", markup=False)
        write_report(run)
        for name, what in (
            (str(REPORT), "all of it as one page: open it in a browser"),
            ("leaderboard.csv", "every trial: parameters, state, val metrics, cost"),
            ("best/", "the kept checkpoints, each with the experiment that rebuilds its model"),
            ("evaluation.json", "the winner on the test split"),
            ("predictions.jsonl", "what it retrieved for each query"),
            ("study.journal", "the Optuna study"),
            ("trials/", "each trial's metrics.jsonl and TensorBoard events"),
        ):
            out.print(f"  {run / name}  [dim]{what}[/dim]", soft_wrap=True)


def run_import_weights(file: Path, experiment_path: str, overrides: list[str], run: Path) -> None:
    """`cdn-tune import-weights`."""
    from cdn_tune.training.import_weights import import_weights

    with one_line_errors():
        _refuse_url(run, "--out")
        import_weights(file, load_experiment(experiment_path, parse_overrides(overrides)), run)
        out.print(f"best checkpoint: {run / BEST}", markup=False, soft_wrap=True)
        out.print(f"test split: cdn-tune evaluate {shlex.quote(str(run))}", markup=False, soft_wrap=True)


def _refuse_url(run: Path, option: str) -> None:
    if url_of(run) is not None:
        raise ConfigError(f"{option} {run}: this command writes to a folder of this machine; name one")


def _train_group(
    experiment: Experiment, run: Path, workers: int, address: str | None, progress: TrainProgress, stop: GentleStop
) -> None:
    from cdn_tune.distributed.launch import train_on_workers

    if experiment.train.batch_size < workers:
        raise ConfigError(f"--workers {workers}: more workers than train.batch_size={experiment.train.batch_size}")
    train_on_workers(experiment, run, workers, progress.on_epoch, address, progress.on_step, stop)


def _has_state(run: Path) -> bool:
    """Whether there is a state to go on from, here or at the run's home."""
    place = place_of(run)
    return (run / LAST).exists() or (place is not None and place.home.entry(str(LAST)) is not None)


def _is_finished(run: Path) -> bool:
    epochs = read_metrics(run)
    return bool(epochs) and _has_state(run) and epochs[-1]["epoch"] >= epochs[-1]["epochs"]


def _print_trained(experiment: Experiment, run: Path, planted: bool) -> None:
    epochs = read_metrics(run)
    out.print(trained_table(experiment, epochs, run, planted))
    label = " (planted data)" if planted else ""
    value = f"{epochs[-1]['best_value']:.4f} after epoch {epochs[-1]['best_epoch']}"
    out.print(f"best val {experiment.eval.metric} {value}{label}", markup=False)
    out.print(f"best checkpoint: {shown(run / BEST)}", markup=False, soft_wrap=True)
    out.print(f"test split: cdn-tune evaluate {shlex.quote(shown(run))}", markup=False, soft_wrap=True)
