"""`cdn-tune leaderboard`: a search's trials, how much each parameter mattered, and a trial as an experiment."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from rich.markup import escape
from rich.table import Table
from typer import BadParameter, Option
from typer.core import TyperCommand

from cdn_tune.cli.app import app
from cdn_tune.cli.options import Json, SearchRun, Storage
from cdn_tune.cli.show.output import head_table, out, print_json_text, print_line, print_note, print_text, warn
from cdn_tune.data.mark import marked
from cdn_tune.errors import ConfigError, RunError

if TYPE_CHECKING:
    from cdn_tune.tuning.results.leaderboard import Row
    from cdn_tune.tuning.results.record import Record

_TABLE_ROWS = 20
Form = Literal["table", "json", "csv"]
Evaluator = Literal["ped-anova", "fanova"]


class _OptionalValue(TyperCommand):
    """Lets ``--importance`` stand alone: it then means its first value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = get_args(Evaluator)
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
    run: SearchRun,
    sort: Annotated[
        str | None, Option(metavar="KEY", help="Column; val metrics best first, others ascending; -KEY turns it round.")
    ] = None,
    filters: Annotated[
        list[str] | None,
        Option(
            "--filter",
            metavar="EXPR",
            help="Show rows for which it holds: 'val R1@0.5 >= 0.4', 'state == complete', 'layers > 3'; repeatable.",
        ),
    ] = None,
    top: Annotated[
        int | None, Option(min=1, metavar="N", help="Rows shown.", show_default="20; all with --json, --csv")
    ] = None,
    columns: Annotated[
        str | None, Option(metavar="NAMES", help="Columns shown, with commas between: trial,value,optim.lr")
    ] = None,
    json: Json = False,
    csv: Annotated[bool, Option("--csv", help="Print the rows as CSV.")] = False,
    importance: Annotated[
        Evaluator | None,
        Option(metavar="[ped-anova|fanova]", help="Print how much each parameter mattered, by ped-anova if alone."),
    ] = None,
    config: Annotated[
        int | None, Option(min=0, metavar="TRIAL", help="Print this trial as an experiment that train accepts.")
    ] = None,
    file: Annotated[Path | None, Option("--out", metavar="FILE", help="With --config: write it there.")] = None,
    storage: Storage = None,
) -> None:
    """Show a search's trials, best first, also while it runs.

    Nothing is written to the run. Refused and repeated proposals are in --json and --csv, and in the table if a
    filter asks for a state.
    """
    from cdn_tune.tuning.results.record import read_record

    if sum(map(bool, (json, csv, importance is not None, config is not None))) > 1:
        raise BadParameter("--json, --csv, --importance and --config exclude each other")
    if file is not None and config is None:
        raise BadParameter("--out goes with --config TRIAL")
    record = read_record(run, storage)
    if record.notice is not None:
        warn(record.notice)
    if config is not None:
        _print_config(record, config, file)
    elif importance is not None:
        _print_importance(record, importance)
    else:
        form: Form = "json" if json else "csv" if csv else "table"
        _print_rows(record, form, sort, filters or [], top, columns)


def _print_rows(
    record: Record, form: Form, sort: str | None, filters: list[str], top: int | None, columns: str | None
) -> None:
    from cdn_tune.tuning.results.filters import find_column, parse_filter, sort_rows
    from cdn_tune.tuning.results.leaderboard import TRIED, csv_text, json_text

    rows = record.rows()
    if not rows:
        raise RunError(f"{record.run}: has no trials yet; wait for the first, or start the search")
    known = list(rows[0])
    tests = [parse_filter(text, known) for text in filters]
    by_state = any(test.column in ("state", "copy_of", "learned_from") for test in tests)
    chosen = [row for row in rows if all(test(row) for test in tests)]
    if form == "table" and not by_state:
        chosen = [row for row in chosen if row["state"] in TRIED]
    if sort is not None:
        chosen = sort_rows(chosen, sort, known)
    names = [find_column(name.strip(), known, "--columns") for name in columns.split(",")] if columns else None
    limit = top or (_TABLE_ROWS if form == "table" else None)
    if form == "json":
        print_json_text(json_text(chosen[:limit], names))
    elif form == "csv":
        print_text(csv_text(chosen[:limit], names or known))
    else:
        _print_table(record, rows, chosen, limit or _TABLE_ROWS, names)


def _print_importance(record: Record, evaluator: Evaluator) -> None:
    from cdn_tune.tuning.results.importance import ENOUGH, importance

    found = importance(record, evaluator)
    val = "val " if "@" in found.objective or found.objective == "mIoU" else ""
    print_line(f"importance for {val}{found.objective} by {found.evaluator}, from {found.trials} complete trials")
    table = head_table("parameter", "share", "trials", "", right=("share", "trials"), fold=("parameter",))
    for name, share in found.shares.items():
        table.add_row(escape(name), f"{share:.1%}", str(found.sampled[name]), "█" * round(30 * share))
    out.print(table)
    for name, reason in found.left_out.items():
        print_line(f"left out: {name}, {reason}")
    if not any(found.shares.values()):
        warn("no parameter made a difference that these trials could show")
    if found.is_uncertain:
        warn(f"{found.trials} complete trials are few: below {ENOUGH} this is little more than chance")


def _print_config(record: Record, number: int, file: Path | None) -> None:
    from cdn_tune.training.runs.files import write_text

    text = config_text(record, number, file)
    if file is None:
        print_text(text)
        return
    if file.is_dir():
        raise ConfigError(f"--out {file}: is a folder; name the file to write")
    write_text(file, text)
    print_note(f"wrote {file}; train it with: {text.splitlines()[0][2:]}")


def config_text(record: Record, number: int, file: Path | None = None) -> str:
    """Returns a trial as an experiment file, which opens with the command that trains it from `file`."""
    from cdn_tune.config.yaml import dump
    from cdn_tune.tuning.results.leaderboard import TRIED, state_of
    from cdn_tune.tuning.study.ranking import CONFIRMS, seed_of, value_of

    trial = record.entry(number)
    state, value = state_of(trial), value_of(trial)
    what = f"trial {number}" if state in TRIED else f"entry {number}"
    lines = [
        f"cdn-tune train {shlex.quote(str(file or f'trial-{number:04d}.yaml'))} "
        f"--run {shlex.quote(f'runs/{record.space.name}-trial-{number:04d}')}",
        "",
        f"From the search {record.space.name} in {record.run}: {what}, {state}.",
    ]
    if value is not None:
        planted = f", {marked(record.attributes['planted'])}" if record.attributes.get("planted") else ""
        epoch = trial.user_attrs.get("best_epoch")
        lines.append(f"val {record.metric} {value:.4f}" + (f" after epoch {epoch}" if epoch else "") + planted)
    if (seed := seed_of(trial)) is not None:
        lines.append(f"Trial {trial.user_attrs[CONFIRMS]} trained again under seed {seed}.")
    if "learned_from" in trial.user_attrs:
        lines.append("Learned from another run: its parameters over this search's base experiment.")
    if trial.user_attrs.get("reason"):
        lines.append(" ".join(str(trial.user_attrs["reason"]).split()))
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + dump(record.experiment(number).plain())


def _print_table(record: Record, rows: list[Row], chosen: list[Row], limit: int, names: list[str] | None) -> None:
    from cdn_tune.cli.show.tables import counts_line, failure_lines, leaderboard_table
    from cdn_tune.tuning.results.leaderboard import TRIED, at_rest
    from cdn_tune.tuning.results.status import is_held

    if not is_held(record.run):
        rows, chosen = at_rest(rows), at_rest(chosen)
    parameters, objectives = list(record.space.parameters), list(record.objectives)
    if names is not None:
        out.print(_plain_table(chosen[:limit], names))
    elif all(row["state"] in TRIED for row in chosen):
        several = objectives if len(objectives) > 1 else []
        out.print(leaderboard_table(chosen, parameters, record.metric, limit, several))
    else:
        out.print(_plain_table(chosen[:limit], ["trial", "state", "value", "copy_of", "learned_from", "reason"]))
    if len(chosen) > limit:
        print_note(f"{len(chosen) - limit} more rows; --top N shows them")
    planted = f"; {marked(record.attributes['planted'])}" if record.attributes.get("planted") else ""
    print_note(counts_line(rows) + planted, "dim")
    if len(chosen) == len([row for row in rows if row["state"] in TRIED]):
        for line in failure_lines(rows):
            print_note(line, "red")


def _plain_table(rows: list[Row], columns: list[str]) -> Table:
    from cdn_tune.cli.show.tables import number

    def numeric(column: str) -> bool:
        return all(isinstance(row[column], int | float) or row[column] == "" for row in rows)

    table = head_table(*map(escape, columns), right={escape(name) for name in columns if numeric(name)}, fold=True)
    for row in rows:
        table.add_row(*(escape(" ".join(number(row[column]).split())) for column in columns))
    return table
