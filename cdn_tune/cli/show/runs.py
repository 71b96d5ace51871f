"""The table of runs."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from cdn_tune.cli.show.output import size_text
from cdn_tune.cli.show.tables import Stacked, number
from cdn_tune.data.mark import marked
from cdn_tune.tuning.results.leaderboard import Row

_STYLES = {"running": "cyan", "failed": "red", "unreadable": "red", "stopped": "yellow"}
_HEADS = ("state", "val", "test", "trials", "size", "begun", "dataset", "family", "kind")
_NUMBERS = ("val", "test", "trials", "size")


def runs_table(rows: Sequence[Row]) -> Stacked:
    """Returns runs as a table, one a row; see `cdn_tune.evaluation.runs.COLUMNS`.

    The metric is named once in the heads where all runs have the same, else with each value.
    """
    metrics = {row["metric"] for row in rows} - {""}
    metric = metrics.pop() if len(metrics) == 1 else ""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("run", overflow="fold")
    for head in _HEADS:
        text = f"{head} {metric}" if metric and head in ("val", "test") else head
        table.add_column(text, justify="right" if head in _NUMBERS else "left", no_wrap=True)
    for row in rows:
        cells = (_cell(row, head, metric) for head in _HEADS)
        table.add_row(escape(row["run"]), *map(escape, cells), style=_STYLES.get(row["state"], ""))
    return Stacked(table)


def _cell(row: Row, head: str, metric: str) -> str:
    value: Any = row.get(head, "")
    if head == "begun":
        return str(row["created"])[:16].replace("T", " ")
    if head == "dataset":
        return f"{value} ({marked(row['planted']).removesuffix(' data')})" if row["planted"] else str(value)
    if value == "":
        return ""
    if head in ("val", "test"):
        return number(value) if metric else f"{row['metric']} {number(value)}"
    if head == "trials" and row["of_trials"] != "":
        return f"{value}/{row['of_trials']}"
    return size_text(value) if head == "size" else str(value)
