"""`cdn-tune leaderboard`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cdn_tune.cli.app import app


class _Evaluator(str, Enum):
    PED_ANOVA = "ped-anova"
    FANOVA = "fanova"


class _OptionalValue(TyperCommand):
    """Lets ``--importance`` stand alone: it then means its first value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = [each.value for each in _Evaluator]
        full: list[str] = []
        for place, argument in enumerate(args):
            full.append(argument)
            if argument == "--importance" and args[place + 1 : place + 2] not in [[name] for name in known]:
                full.append(known[0])
        return super().parse_args(ctx, full)


@app.command(
    cls=_OptionalValue,
    epilog="Examples: cdn-tune leaderboard runs/charades-core --filter 'val R1@0.5 >= 0.4' --sort seconds; "
    "cdn-tune leaderboard runs/charades-core --config 17 --out experiments/best.yaml",
)
def leaderboard(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a search, running or ended.")],
    sort: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Column; val metrics best first, others ascending; -KEY turns it round."),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="EXPR",
            help="Show rows for which it holds: 'val R1@0.5 >= 0.4', 'state == complete', 'layers > 3'; repeatable.",
        ),
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rows shown.", show_default="20; all with --json, --csv")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Columns shown, with commas between: trial,value,optim.lr")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.")] = False,
    importance: Annotated[
        _Evaluator | None,
        typer.Option(
            metavar="[ped-anova|fanova]", help="Print how much each parameter mattered, by ped-anova if alone."
        ),
    ] = None,
    config: Annotated[
        int | None, typer.Option(min=0, metavar="TRIAL", help="Print this trial as an experiment that train accepts.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="With --config: write it there.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the study lies, if the run folder does not tell it all.")
    ] = None,
) -> None:
    """Show a search's trials, best first, also while it runs.

    Nothing is written to the run. Refused and repeated proposals are in --json and --csv, and in the table if a
    filter asks for a state.
    """
    from cdn_tune.cli.show.leaderboard import run_config, run_importance, run_leaderboard

    if sum(map(bool, (json, csv, importance is not None, config is not None))) > 1:
        raise typer.BadParameter("--json, --csv, --importance and --config exclude each other")
    if out is not None and config is None:
        raise typer.BadParameter("--out goes with --config TRIAL")
    if config is not None:
        run_config(run, config, out, storage)
    elif importance is not None:
        run_importance(run, importance.value, storage)
    else:
        run_leaderboard(run, "json" if json else "csv" if csv else "table", sort, filters or [], top, columns, storage)
