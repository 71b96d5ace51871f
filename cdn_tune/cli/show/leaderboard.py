"""`cdn-tune leaderboard`: a search's trials, what mattered, and a trial as an experiment."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from cdn_tune.cli.show.output import err, one_line_errors, out, warn
from cdn_tune.cli.show.tables import counts_line, failure_lines, leaderboard_table, number
from cdn_tune.config.yaml import dump
from cdn_tune.errors import ConfigError, RunError
from cdn_tune.training.runs.files import write_text
from cdn_tune.tuning.results.filters import find_column, parse_filter, sort_rows
from cdn_tune.tuning.results.leaderboard import TRIED, Row, csv_text, json_text, state_of
from cdn_tune.tuning.results.record import Record, read_record
from cdn_tune.tuning.study.ranking import value_of

_TABLE_ROWS = 20


def run_leaderboard(
    run: Path,
    form: Literal["table", "json", "csv"],
    sort: str | None,
    filters: list[str],
    top: int | None,
    columns: str | None,
    storage: str | None = None,
) -> None:
    """`cdn-tune leaderboard RUN`."""
    with one_line_errors():
        record = read_record(run, storage)
        rows = record.rows()
        if not rows:
            raise RunError(f"{run}: has no trials yet; wait for the first, or start the search")
        known = list(rows[0])
        tests = [parse_filter(text, known) for text in filters]
        asks_for_state = any(test.column in ("state", "copy_of", "learned_from") for test in tests)
        chosen = [row for row in rows if all(test(row) for test in tests)]
        if form == "table" and not asks_for_state:
            chosen = [row for row in chosen if row["state"] in TRIED]
        if sort is not None:
            chosen = sort_rows(chosen, sort, known)
        names = [find_column(name.strip(), known, "--columns") for name in columns.split(",")] if columns else None
        limit = top or (_TABLE_ROWS if form == "table" else None)
        if form == "json":
            out.file.write(json_text(chosen[:limit], names))
        elif form == "csv":
            out.file.write(csv_text(chosen[:limit], names or known))
        else:
            _print_table(record, rows, chosen, limit or _TABLE_ROWS, names)


def run_importance(run: Path, evaluator: Literal["ped-anova", "fanova"], storage: str | None = None) -> None:
    """`cdn-tune leaderboard RUN --importance`."""
    from cdn_tune.tuning.results.importance import ENOUGH, importance

    with one_line_errors():
        found = importance(read_record(run, storage), evaluator)
        judged = f"importance for {_objective(found.objective)} by {found.evaluator}"
        out.print(f"{judged}, from {found.trials} complete trials", markup=False, soft_wrap=True)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("parameter", overflow="fold")
        for head in ("share", "trials"):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for name, share in found.shares.items():
            table.add_row(escape(name), f"{share:.1%}", str(found.sampled[name]), "█" * round(30 * share))
        out.print(table)
        for name, reason in found.left_out.items():
            out.print(f"left out: {name}, {reason}", markup=False, soft_wrap=True)
        if not any(found.shares.values()):
            warn("no parameter made a difference that these trials could show")
        if found.is_uncertain:
            warn(f"{found.trials} complete trials are few: below {ENOUGH} this is little more than chance")


def run_config(run: Path, number_: int, file: Path | None, storage: str | None = None) -> None:
    """`cdn-tune leaderboard RUN --config TRIAL`."""
    with one_line_errors():
        text = config_text(read_record(run, storage), number_, file)
        if file is None:
            out.file.write(text)
            return
        if file.is_dir():
            raise ConfigError(f"--out {file}: is a folder; name the file to write")
        write_text(file, text)
        err.print(f"wrote {file}; train it with: {text.splitlines()[0][2:]}", markup=False, soft_wrap=True)


def config_text(record: Record, number_: int, file: Path | None = None) -> str:
    """Returns a trial as an experiment file, which opens with the command that runs it.

    Args:
        record: The search.
        number_: The trial.
        file: Where it will be written; a name is made up if None.
    """
    trial, state = record.entry(number_), state_of(record.entry(number_))
    experiment = record.experiment(number_)
    value = value_of(trial)
    what = f"trial {number_}" if state in TRIED else f"entry {number_}"
    lines = [
        f"cdn-tune train {shlex.quote(str(file or f'trial-{number_:04d}.yaml'))} "
        f"--run {shlex.quote(f'runs/{record.space.name}-trial-{number_:04d}')}",
        "",
        f"From the search {record.space.name} in {record.run}: {what}, {state}.",
    ]
    if value is not None:
        planted = ", planted data" if record.attributes.get("planted") else ""
        epoch = trial.user_attrs.get("best_epoch")
        lines.append(f"val {record.metric} {value:.4f}" + (f" after epoch {epoch}" if epoch else "") + planted)
    if "learned_from" in trial.user_attrs:
        lines.append("Learned from another run: its parameters over this search's base experiment.")
    if trial.user_attrs.get("reason"):
        lines.append(" ".join(str(trial.user_attrs["reason"]).split()))
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + dump(experiment.plain())


def _print_table(record: Record, rows: list[Row], chosen: list[Row], limit: int, names: list[str] | None) -> None:
    parameters, objectives = list(record.space.parameters), list(record.objectives)
    if names is not None:
        out.print(_plain_table(chosen[:limit], names))
    elif all(row["state"] in TRIED for row in chosen):
        several = objectives if len(objectives) > 1 else []
        out.print(leaderboard_table(chosen, parameters, record.metric, limit, several))
    else:
        out.print(_plain_table(chosen[:limit], ["trial", "state", "value", "copy_of", "learned_from", "reason"]))
    if len(chosen) > limit:
        err.print(f"{len(chosen) - limit} more rows; --top N shows them", markup=False, soft_wrap=True)
    planted = "; planted data" if record.attributes.get("planted") else ""
    err.print(counts_line(rows) + planted, markup=False, soft_wrap=True, style="dim")
    if len(chosen) == len([row for row in rows if row["state"] in TRIED]):
        for line in failure_lines(rows):
            err.print(line, markup=False, soft_wrap=True, style="red")


def _plain_table(rows: list[Row], columns: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        numeric = all(isinstance(row[column], int | float) or row[column] == "" for row in rows)
        table.add_column(escape(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(row[column])) for column in columns))
    return table


def _cell(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else number(value)


def _objective(name: str) -> str:
    return f"val {name}" if "@" in name or name == "mIoU" else name
