"""`cdn-tune search SPACE`: the search itself, and its plan."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option, confirm

from cdn_tune.cli.app import START, search_app
from cdn_tune.cli.options import Address, Json, Overrides, RunOption, Storage, local_run
from cdn_tune.cli.show.output import GracefulStop, err, out, print_json, print_line, print_note, terminable, warn
from cdn_tune.errors import ConfigError

if TYPE_CHECKING:
    from cdn_tune.config import Experiment, SearchSpace


@search_app.command(
    name=START,
    hidden=True,
    epilog="Example: cdn-tune search search_spaces/charades-quick.yaml data.root=/data/charades --trials 20. "
    "Of a search under way: cdn-tune search status RUN, cdn-tune search stop RUN.",
)
def start(
    space: Annotated[str, Argument(metavar="SPACE", help="Search space YAML, or a shipped one's path.")],
    overrides: Overrides = None,
    trials: Annotated[
        int | None,
        Option(min=1, help="Trials in all, in place of the space's; raise it to go on with a finished search."),
    ] = None,
    add_trials: Annotated[int | None, Option(min=1, metavar="N", help="N trials more than before.")] = None,
    run: RunOption = None,
    resume: Annotated[
        bool, Option("--resume", help="Go on with the search that RUN holds, without asking; it must hold one.")
    ] = False,
    retry_failed: Annotated[bool, Option("--retry-failed", help="Try failed trials again.")] = False,
    plan: Annotated[
        bool, Option("--plan", help="Print the space, what trials cost and what would be refused, and stop.")
    ] = False,
    storage: Storage = None,
    warm_start: Annotated[
        list[Path] | None,
        Option(metavar="RUN", help="Learn from the results of another search, of another space too; repeatable."),
    ] = None,
    hours: Annotated[float | None, Option(min=0.0, help="Hours of searching, over all starts.")] = None,
    gpu_hours: Annotated[float | None, Option(min=0.0, help="GPU-hours of all trials.")] = None,
    target: Annotated[float | None, Option(help="Val metric that is good enough.")] = None,
    settings: Annotated[
        list[str] | None,
        Option("--set", metavar="KEY=VALUE", help="A key of the search space, e.g. --set sampler.seed=3."),
    ] = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Search for the best configuration with Ray Tune and Optuna.

    Epochs and trials are chosen on the val split; the best checkpoints are kept under RUN/best/. With `confirm` in the
    space, the best are trained again under further seeds, and the best by mean wins. The same command again goes on
    where it stopped. Ctrl-C once has running trials save a checkpoint; twice leaves at once.
    With --set early_stopping.mode=promote trials that lag pause with their checkpoint, and go on once they are among
    the best (asha, hyperband).
    """
    from cdn_tune.config import load_space, parse_overrides
    from cdn_tune.config.check import without_effect
    from cdn_tune.training.object_store.working_copy import url_of, working_copy

    if json and not plan:
        raise ConfigError("--json prints what --plan finds; add --plan, or use `search status RUN --json`")
    with terminable():
        budget = {"budget.hours": hours, "budget.gpu_hours": gpu_hours, "budget.target": target}
        changes = parse_overrides(settings or []) | {key: value for key, value in budget.items() if value is not None}
        found, experiment = load_space(space, parse_overrides(overrides or []), changes)
        if idle := without_effect(experiment, found):
            warn(idle)
        folder = run or Path("runs") / found.name
        if plan:
            folder = folder if url_of(folder) is None else working_copy(folder)
            _print_plan(found, experiment, folder, trials, storage, json)
            return
        folder = local_run(folder)
        if not resume:
            _confirm_resume(folder)
        options = {"trials": trials, "add_trials": add_trials, "address": address, "storage": storage}
        warm = tuple(warm_start or ())
        run_search(found, experiment, folder, **options, resume=resume, retry_failed=retry_failed, warm_start=warm)


def run_search(space: SearchSpace, experiment: Experiment, run: Path, **options: Any) -> None:
    """Runs a search and prints its end; raises `KeyboardInterrupt` if the user stopped it before its last trial."""
    from cdn_tune.cli.show.live import SearchProgress
    from cdn_tune.cli.show.tables import search_summary
    from cdn_tune.training.object_store.working_copy import shown
    from cdn_tune.tuning.search import SearchOptions, search

    parameters, metric = list(space.parameters), experiment.eval.metric
    several = [objective.metric for objective in space.objectives] if len(space.objectives) > 1 else []
    showing = SearchProgress(parameters, metric, space.objectives, space.budget)
    with showing as progress, GracefulStop("running trials save a checkpoint") as stop:
        result = search(space, experiment, run, progress.on_change, SearchOptions(**options, stop=stop))
    if result.tracked and not result.interrupted:
        _track_report(experiment, run)
    for note in result.notes:
        print_note(note)
    out.print(search_summary(result.rows, parameters, metric, several))
    if result.was_finished:
        print_note(f"{shown(run)} is finished; --add-trials N goes on with N more")
    if result.audit is not None and not result.audit.is_clean:
        warn(str(result.audit))
    if result.interrupted and stop():
        raise KeyboardInterrupt
    if result.ended_by is not None:
        print_note(f"ended early: {result.ended_by}; raise it to go on")
    elif result.interrupted:
        print_note("stopped as asked; the same command goes on")
    print_line(f"leaderboard: {shown(run / 'leaderboard.csv')}")
    print_line(f"best checkpoint: {shown(result.kept[0]) if result.kept else 'none is left in the run folder'}")
    if result.kept:
        print_line(f"test split: cdn-tune evaluate {shlex.quote(shown(run))}")


def _track_report(experiment: Experiment, run: Path) -> None:
    from cdn_tune.report.track import track_report

    with err.status("building the report for MLflow"):
        fault = track_report(experiment, run)
    if fault is not None:
        warn(fault)


def _confirm_resume(run: Path) -> None:
    """Raises `typer.Exit` unless the user, if at a terminal, confirms that a run folder's search is to go on."""
    from cdn_tune.training.object_store.working_copy import shown
    from cdn_tune.training.runs.run_folder import MANIFEST

    if not (run / MANIFEST).exists() or not (sys.stdin.isatty() and err.is_terminal):
        return
    if not confirm(f"{shown(run)} holds a search already; go on with it?", default=True, err=True):
        raise Exit(0)


def _print_plan(
    space: SearchSpace, base: Experiment, run: Path, trials: int | None, storage: str | None, as_json: bool
) -> None:
    """Prints the plan of a search; raises `typer.Exit` with code 2 if the search would be refused."""
    from cdn_tune.cli.show.plan import plan_plain, search_plan_table
    from cdn_tune.tuning.layout import study_url
    from cdn_tune.tuning.planning.plan import plan_search

    run = run.absolute()
    with err.status("judging proposals, measuring a few steps"):
        plan = plan_search(space, base, run, storage or study_url(run), trials)
    if as_json:
        print_json(plan_plain(plan))
    else:
        out.print(search_plan_table(plan))
    for line in plan.warnings:
        warn(line)
    for line in plan.errors:
        print_note(f"would be refused: {line}", "red")
    if plan.errors:
        raise Exit(ConfigError.exit_code)
