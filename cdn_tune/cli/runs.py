"""`cdn-tune runs`: every run of a folder in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from cdn_tune.cli.app import app
from cdn_tune.cli.options import Json
from cdn_tune.cli.show.output import err, out, print_json_text, print_line, print_note


@app.command(
    epilog="Examples: cdn-tune runs; cdn-tune runs /scratch/me --sort val --filter 'dataset == tacos'; "
    "cdn-tune runs s3://BUCKET/runs --json"
)
def runs(
    folder: Annotated[
        Path,
        Argument(metavar="DIR", help="Folder of runs, or its URL on an object store.", show_default="runs"),
    ] = Path("runs"),
    sort: Annotated[
        str | None,
        Option(
            metavar="KEY",
            help="run, state, val, test, trials, size, created, ...: val and test best first, others ascending; -KEY "
            "turns it round.",
            show_default="-created",
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        Option(
            "--filter",
            metavar="EXPR",
            help="Show runs for which it holds: 'state == running', 'val >= 0.4', 'size > 1e9'; repeatable.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the runs in DIR: what each is, how it stands, its best val and its test result, and its size on disk.

    Nothing is written to a run, and no model is opened. A run that cannot be read is listed with the reason.
    """
    from cdn_tune.evaluation.runs import COLUMNS, find_runs, summarise_run
    from cdn_tune.tuning.results.filters import parse_filter, sort_rows
    from cdn_tune.tuning.results.leaderboard import json_text

    known = list(COLUMNS)
    tests = [parse_filter(text, known) for text in filters or []]
    sort_rows([], sort or known[0], known)  # a wrong key is reported before anything is read
    with err.status("reading"):
        rows = [summarise_run(run) for run in find_runs(folder)]
    chosen = sort_rows([row for row in rows if all(test(row) for test in tests)], sort or "-created", known)
    if json:
        print_json_text(json_text(chosen))
        return
    if not chosen:
        print_note(f"{folder}: {len(rows)} runs, none for which the filters hold" if rows else _none(folder))
        return
    from cdn_tune.cli.show.runs import runs_table

    out.print(runs_table(chosen))
    for row in chosen:
        if row["reason"]:
            print_line(row["reason"], "red" if row["state"] == "unreadable" else "yellow")


def _none(folder: Path) -> str:
    return f"{folder}: no runs there; cdn-tune train and cdn-tune search make some, under runs/ unless told otherwise"
