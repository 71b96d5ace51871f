"""`cdn-tune search` and `search stop`, in words of the tuning package."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import typer

from cdn_tune.cli.show.interrupt import GentleStop
from cdn_tune.cli.show.live import SearchProgress
from cdn_tune.cli.show.output import GOES_ON, err, one_line_errors, out, terminable, warn
from cdn_tune.cli.show.tables import search_summary
from cdn_tune.config import Experiment, SearchSpace, load_space, parse_overrides
from cdn_tune.errors import RunError
from cdn_tune.training.object_store.sync import fetched
from cdn_tune.training.object_store.working_copy import shown, url_of, working_copy
from cdn_tune.training.runs.run_folder import MANIFEST, read_manifest
from cdn_tune.tuning.results.status import is_held
from cdn_tune.tuning.search import SearchOptions, SearchResult, search
from cdn_tune.tuning.stop_file import ask_to_stop

_WAIT_SECONDS = 0.5


def run_search(
    space_path: str,
    overrides: list[str],
    run: Path | None,
    *,
    settings: list[str],
    budget: dict[str, float],
    plan: bool,
    **options: Any,
) -> None:
    """`cdn-tune search`."""
    with one_line_errors(GOES_ON), terminable():
        changes = {**parse_overrides(settings), **budget}
        space, experiment = load_space(space_path, parse_overrides(overrides), changes)
        run = run or Path("runs") / space.name
        run = run if url_of(run) is None else working_copy(run) if plan else fetched(run)
        if plan:
            from cdn_tune.cli.show.search_plan import print_plan

            print_plan(space, experiment, run, options["trials"], options["storage"])
            return
        if not options["resume"]:
            _ask_to_go_on(run)
        search_and_print(space, experiment, run, **options)


def search_and_print(space: SearchSpace, experiment: Experiment, run: Path, **options: Any) -> SearchResult:
    """Runs a search and prints how it ended.

    Raises:
        KeyboardInterrupt: If the user stopped it before its last trial.
    """
    parameters, metric = list(space.parameters), experiment.eval.metric
    several = [objective.metric for objective in space.objectives] if len(space.objectives) > 1 else []
    with (
        SearchProgress(parameters, metric, space.objectives, space.budget) as progress,
        GentleStop("running trials save a checkpoint") as stop,
    ):
        result = search(space, experiment, run, progress.on_change, SearchOptions(**options, stop=stop))
    for note in result.notes:
        err.print(note, markup=False, soft_wrap=True)
    out.print(search_summary(result.rows, parameters, metric, several))
    if result.was_finished:
        err.print(f"{shown(run)} is finished; --add-trials N goes on with N more", markup=False, soft_wrap=True)
    if result.audit is not None:
        if result.audit.is_clean:
            err.print(str(result.audit), style="dim", markup=False, soft_wrap=True)
        else:
            warn(str(result.audit))
    if result.interrupted and stop():
        raise KeyboardInterrupt
    if result.ended_by is not None:
        err.print(f"ended early: {result.ended_by}; raise it to go on", markup=False, soft_wrap=True)
    elif result.interrupted:
        err.print("stopped as asked; the same command goes on", markup=False, soft_wrap=True)
    out.print(f"leaderboard: {shown(run / 'leaderboard.csv')}", markup=False, soft_wrap=True)
    best = shown(result.kept[0]) if result.kept else "none is left in the run folder"
    out.print(f"best checkpoint: {best}", markup=False, soft_wrap=True)
    if result.kept:
        out.print(f"test split: cdn-tune evaluate {shlex.quote(shown(run))}", markup=False, soft_wrap=True)
    return result


def run_stop(run: Path, wait: bool) -> None:
    """`cdn-tune search stop`."""
    with one_line_errors():
        run = run if url_of(run) is None else fetched(run)
        if read_manifest(run)["kind"] != "search":
            raise RunError(f"{run}: holds a train run; Ctrl-C, or SIGTERM to its process, stops it with a checkpoint")
        if not is_held(run):
            out.print(f"{shown(run)}: no search is running there", markup=False, soft_wrap=True)
            return
        ask_to_stop(run)
        if wait:
            with err.status("waiting for running trials to save a checkpoint"):
                while is_held(run):
                    time.sleep(_WAIT_SECONDS)
        text = "stopped; the same command goes on" if wait else "asked to stop"
        out.print(f"{shown(run)}: {text}", markup=False, soft_wrap=True)


def _ask_to_go_on(run: Path) -> None:
    """Asks, in a terminal, whether a run folder's search is meant to go on."""
    if not (run / MANIFEST).exists() or not (sys.stdin.isatty() and err.is_terminal):
        return
    if not typer.confirm(f"{shown(run)} holds a search already; go on with it?", default=True, err=True):
        raise typer.Exit(0)
