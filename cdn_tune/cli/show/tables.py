"""Tables of results."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cdn_tune.cli.show.output import UNKNOWN, duration_text, size_text
from cdn_tune.config import Experiment
from cdn_tune.data.mark import Mark, marked
from cdn_tune.tuning.results.leaderboard import (
    PAUSED,
    TRIED,
    UNFINISHED,
    Column,
    Row,
    Shape,
    at_rest,
    columns_of,
    objective_column,
    short_names,
)
from cdn_tune.tuning.study.failures import MEANING

STATE_ORDER = ("complete", "pruned", "failed", "running", PAUSED, UNFINISHED, "waiting")
_ENTRIES = {
    "refused": ("refused proposal", "refused proposals"),
    "copy": ("repeated proposal", "repeated proposals"),
    "learned": ("learned result", "learned results"),
}


def number(value: Any, digits: int = 4) -> str:
    """Returns a cell's text: numbers short, lists joined, booleans and words as they are."""
    if isinstance(value, list):
        return ",".join(number(item, digits) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.{digits}f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.2e}"


class Stacked:
    """A table that cuts no number: columns for which a line has no room go into further tables below, with the first.

    Args:
        table: Its first column may run over several lines, the others do not.
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def width(part: Table) -> int:
            return Measurement.get(console, options.update(max_width=10_000), part).maximum

        labels = self.table.columns[0].min_width or width(self._part([]))
        narrowest = min(labels, options.max_width // 3)  # as which the first column is counted
        groups: list[list[int]] = [[]]
        for number in range(1, len(self.table.columns)):
            if groups[-1] and width(self._part([*groups[-1], number], narrowest)) > options.max_width:
                groups.append([])
            groups[-1].append(number)
        for group in groups:
            part = self._part(group)
            part.title = self.table.title if group is groups[0] else None
            yield part

    def _part(self, numbers: Sequence[int], first_width: int | None = None) -> Table:
        """Returns a table of the first column, which has a width if one is given, and of some others."""
        whole = self.table
        part = Table(
            box=whole.box,
            title_justify=whole.title_justify,
            show_edge=whole.show_edge,
            pad_edge=whole.pad_edge,
            padding=whole.padding,
        )
        columns = [whole.columns[number] for number in (0, *numbers)]
        for column in columns:
            width, wraps = (first_width, True) if column is columns[0] else (None, False)
            part.add_column(
                column.header,
                overflow="fold",
                no_wrap=not wraps,
                justify=column.justify,
                style=column.style,
                width=width,
            )
        for row, *cells in zip(whole.rows, *(column.cells for column in columns), strict=True):
            part.add_row(*cells, style=row.style)
        return part


def leaderboard_table(
    rows: list[Row], parameters: list[str], metric: str, limit: int | None = None, objectives: Sequence[str] = ()
) -> "Leaderboard":
    """Returns the leaderboard's trials as a table; entries that are no trials (refused, copies, learned) are not shown.

    Args:
        rows: As :func:`cdn_tune.tuning.results.leaderboard.leaderboard` returns them.
        parameters: Dotted keys to show.
        metric: Name of the val metric that ranks.
        limit: Rows shown; all if None.
        objectives: Names of the objectives, if there are several: a column each, and one that marks the Pareto front.
    """
    return Leaderboard([row for row in rows if row["state"] in TRIED][:limit], parameters, metric, objectives)


class Leaderboard:
    """Rows of a leaderboard: a column per parameter where the terminal is wide enough, else a line below each row."""

    def __init__(self, rows: list[Row], parameters: list[str], metric: str, objectives: Sequence[str]) -> None:
        self.rows, self._parameters = rows, parameters
        names = [name for name in objectives if name != metric]
        columns = columns_of(Shape(parameters, names, metric, any("pareto" in row for row in rows)))
        others = [column for name in names for column in columns if column.key == objective_column(name)]
        shown = [
            column
            for column in columns
            if column.terminal in ("always", "wide")
            or (column.terminal == "filled" and any(row.get(column.key, "") != "" for row in rows))
        ]
        value = [column.key for column in shown].index("value") + 1
        self._columns = [*shown[:value], *others, *shown[value:]]
        self._fails = any(row["state"] == "failed" for row in rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = self._table(options.max_width // 4, apart=True)
        if Measurement.get(console, options.update(max_width=10_000), wide).maximum <= options.max_width:
            yield wide
            return
        narrow = Stacked(self._table(0, apart=False))
        lines = console.render_lines(narrow, options.update(height=None), pad=False)
        below = dict(enumerate(self.rows, start=len(lines) - len(self.rows)))
        for index, line in enumerate(lines):
            yield from (*line, Segment.line())
            if index in below:
                yield self._below(below[index])

    def _table(self, reason_width: int, apart: bool) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
        short = short_names(self._parameters)
        columns = [column for column in self._columns if apart or column.terminal != "wide"]
        for column in columns:
            justify = {"text": "left", "mark": "center"}.get(column.form, "right")
            table.add_column(short.get(column.title, column.title), justify=justify, no_wrap=True)  # type: ignore[arg-type]
        if apart and self._fails:
            table.add_column("why it failed", overflow="fold", max_width=max(reason_width, 20))
        for row in self.rows:
            cells = [_cell(row, column) for column in columns]
            cells += [_one_line(row["reason"])] if apart and self._fails and row["state"] == "failed" else []
            table.add_row(*map(escape, cells), style=_style(row))
        return table

    def _below(self, row: Row) -> RenderableType:
        about = _one_line(row["reason"]) if row["state"] == "failed" else parameters_line(row, self._parameters)
        return Padding(Text(about, style="red" if row["state"] == "failed" else "dim", overflow="fold"), (0, 0, 0, 6))


def _cell(row: Row, column: Column) -> str:
    value = row.get(column.key, "")  # rows of an earlier version lack later columns
    if column.form == "epochs":
        return epochs_text(row)
    if column.form == "mark":
        return "*" if value == 1 else ""
    return clock(value) if column.form == "seconds" and value != "" else number(value)


def _style(row: Row) -> str:
    if row["rank"] == 1:
        return "bold green"
    return {"failed": "red", "running": "cyan", PAUSED: "cyan", UNFINISHED: "cyan", "pruned": "dim"}.get(
        row["state"], ""
    )


def search_summary(
    rows: list[Row], parameters: list[str], metric: str, objectives: Sequence[str] = (), limit: int = 10
) -> Group:
    """Returns an ended search's `limit` best trials, their number, and why some failed; see `leaderboard_table`."""
    rows = at_rest(rows)
    trials = [row for row in rows if row["state"] in TRIED]
    parts: list[RenderableType] = [leaderboard_table(trials, parameters, metric, limit, objectives)]
    parts.append(Text(counts_line(rows) + (f"; the {limit} best are shown" if len(trials) > limit else ""), "dim"))
    front = [str(row["trial"]) for row in trials if row.get("pareto") == 1]
    if front:
        parts.append(Text(f"Pareto front of {len(front)}: trials {', '.join(front)}"))
    parts += [Text(line, style="red") for line in failure_lines(rows)]
    return Group(*parts)


def counts_line(rows: list[Row]) -> str:
    """Returns how many trials are in which state, and apart from them the entries that were never started."""
    counts = Counter(row["state"] for row in rows)
    again = sum(row["tried_again"] == 1 for row in rows)
    trials = [f"{counts[state]} {state}" for state in STATE_ORDER if counts[state]]
    line = f"{sum(counts[state] for state in TRIED)} trials" + (f": {', '.join(trials)}" if trials else "")
    line += f" ({again} of them tried again)" if again else ""
    confirming = sum(row.get("confirms", "") != "" for row in rows)
    line += f" ({confirming} of them confirm others)" if confirming else ""
    beside = entries_text(counts)
    return line + (f"; besides, {beside}" if beside else "")


def entries_text(counts: Mapping[str, int]) -> str:
    """Returns how many entries of the study are no trials: refused, repeated or learned ones."""
    found = [(counts.get(role, 0), one, many) for role, (one, many) in _ENTRIES.items()]
    return ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in found if count)


def failure_lines(rows: list[Row]) -> list[str]:
    """Returns why trials failed, a line per kind of failure, the most frequent first, each with one reason."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        if row["state"] == "failed":
            kinds.setdefault(row["failure"], []).append(row)
    lines = []
    for kind, failed in sorted(kinds.items(), key=lambda item: -len(item[1])):
        reason, often = Counter(_one_line(row["reason"]) for row in failed).most_common(1)[0]
        first = next(row["trial"] for row in failed if _one_line(row["reason"]) == reason)
        more = "" if often == len(failed) else f" (and {len(failed) - often} more for reasons like it)"
        more += f"; first trial {first}" if len(failed) > 1 else ""
        about = MEANING.get(kind, "of unknown kind")
        lines.append(f"{len(failed)} failed, {about}: {reason or 'no reason told'}{more}")
    return lines


def mean_text(row: Row) -> str:
    """Returns what a row's confirmations have found, to be put behind its value; an empty text if it has none."""
    if row.get("mean", "") == "":
        return ""
    ends = f" ({number(row['mean_low'])} to {number(row['mean_high'])})" if row["mean_low"] != "" else ""
    return f"; mean of {row['seeds']} further {'seed' if row['seeds'] == 1 else 'seeds'} {number(row['mean'])}{ends}"


def parameters_line(row: Row, parameters: list[str]) -> str:
    """Returns a row's sampled values in one line, ``layers=3 lr=2.0e-03``."""
    short = short_names(parameters)
    return " ".join(f"{short[key]}={number(row[key])}" for key in parameters if row[key] != "")


def epochs_text(row: Row) -> str:
    """Returns a row's epochs, ``3/12`` where it has not reached the last one."""
    whole = row["of_epochs"]
    return str(row["epochs"]) if whole in ("", row["epochs"]) else f"{row['epochs']}/{whole}"


def rough(seconds: float | None) -> str:
    """Returns a duration that is known to about a second at best, or that it is unknown."""
    return UNKNOWN if seconds is None else duration_text(max(seconds, 1.0))


def clock(seconds: float) -> str:
    """Returns a duration as ``8.3 s``, ``2:07`` or ``1:02:07``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def experiment_line(experiment: Experiment) -> str:
    """Returns an experiment in one line."""
    model = experiment.model.summary() or experiment.model.label
    return f"{model}, batch {experiment.train.batch_size}, lr {experiment.optim.lr:g}"


def trained_table(experiment: Experiment, epochs: Sequence[Row], run: Path, planted: Mark) -> Stacked:
    """Returns the best epoch's val metrics in %, and the trial's time, memory and disk use, of its recorded epochs."""
    from cdn_tune.training.memory.estimate import occupied_bytes  # torch, which the other tables do not need

    last = epochs[-1]
    best = epochs[last["best_epoch"] - 1]
    label = marked(planted)
    title = f"{experiment.data.dataset} ({label}), val split, epoch {best['epoch']} of {last['epoch']}, in %"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("")
    for name in best["val"]:
        table.add_column(name, justify="right", style="bold green" if name == experiment.eval.metric else "")
    for head in ("time", "peak memory", "checkpoints on disk"):
        table.add_column(head, justify="right", style="dim")
    seconds = sum(epoch["train_seconds"] + epoch["val_seconds"] for epoch in epochs)
    table.add_row(
        f"{experiment.model.label}, best on val",
        *(f"{100 * value:.2f}" for value in best["val"].values()),
        duration_text(seconds),
        size_text(last["peak_bytes"]) if last.get("peak_bytes") else "",
        size_text(occupied_bytes(run)),
    )
    return Stacked(table)


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())
