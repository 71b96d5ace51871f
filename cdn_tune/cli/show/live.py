"""A running search: one live table in a terminal, a line per trial that begins, pauses or ends elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cdn_tune.cli.show.output import UNKNOWN, duration_text, err, print_note
from cdn_tune.cli.show.tables import (
    clock,
    counts_line,
    epochs_text,
    leaderboard_table,
    mean_text,
    number,
    parameters_line,
    rough,
)
from cdn_tune.config.space import MEASURED_COSTS, BudgetConfig, Objective
from cdn_tune.tuning.results.leaderboard import ENDED, HOUR, PAUSED, objective_column
from cdn_tune.tuning.results.status import ahead, best_per_objective, count_ended, eta_seconds

if TYPE_CHECKING:
    from cdn_tune.tuning.progress import SearchState

_BAR = 12
_BEST_ROWS = 5
_GAP = 2
_TABLE_HEAD = 1  # lines of a table that are no rows
_REDRAWN = 4  # times a second
_SILENT_SECONDS = 60.0  # after which a line tells how the search stands, where there is no terminal


class SearchProgress:
    """Shows a search as it goes.

    Args:
        parameters: Dotted keys that are searched.
        metric: Name of the val metric that ranks.
        objectives: What is optimised, if it is more than the metric.
        budget: What ends the search besides the number of its trials.
    """

    def __init__(
        self,
        parameters: list[str],
        metric: str,
        objectives: Sequence[Objective] = (),
        budget: BudgetConfig | None = None,
    ) -> None:
        self._parameters, self._metric = parameters, metric
        self._objectives = objective_directions(objectives)
        self._budget = budget or BudgetConfig()
        self._begun: set[tuple[int, str]] = set()  # trials that run or are paused, and which of these
        self._ended: set[int] | None = None  # before the first report
        self._printed: set[str] = set()
        self._spoke = time.monotonic()
        self._picture: LiveTable | None = None
        self._live: Live | None = None
        if err.is_terminal and not err.is_dumb_terminal:
            self._live = Live(console=err, refresh_per_second=_REDRAWN, transient=True, get_renderable=self._render)

    def on_change(self, state: SearchState) -> None:
        """Shows the search as it stands."""
        if self._live is not None:  # redrawn in intervals, so that the clock ticks between reports
            self._picture = LiveTable(state, self._parameters, self._metric, self._objectives, self._budget)
            return
        lines = [line for line in state.lines if line not in self._printed]
        self._printed.update(lines)
        lines += self._lines(state)
        now = time.monotonic()
        if not lines and now - self._spoke >= _SILENT_SECONDS:
            lines = [self._standing(state)]
        for line in lines:
            print_note(line)
            self._spoke = now

    def _lines(self, state: SearchState) -> list[str]:
        """Returns a line for each trial that has ended, begun or paused since the last call; first, one about all."""
        ended = {row["trial"]: row for row in state.rows if row["state"] in ENDED}
        lines = []
        if self._ended is None:
            self._ended = set(ended)
            self._begun = {(row["trial"], PAUSED) for row in state.rows if row["state"] == PAUSED}
            lines.append(self._standing(state))
        fresh = [ended[trial] for trial in sorted(ended.keys() - self._ended)]
        count = count_ended(state.rows) - count_ended(fresh)
        for place, row in enumerate(fresh, start=1):
            lines.append(self._end(row, count + count_ended(fresh[:place]), state))
        self._ended |= ended.keys()
        standing = {(row["trial"], row["state"]): row for row in state.rows if row["state"] in ("running", PAUSED)}
        for trial, how in sorted(standing.keys() - self._begun):
            row = standing[trial, how]
            about = f" ({parameters_line(row, self._parameters)})"
            if how == PAUSED:
                about = f": val {self._metric} {number(row['value'])} after {epochs_text(row)} epochs"
            lines.append(f"trial {trial} {how}{about}")
        self._begun = set(standing)
        return lines

    def _end(self, row: dict[str, Any], count: int, state: SearchState) -> str:
        value = f"val {self._metric} {number(row['value'])}" if row["value"] != "" else row["reason"]
        shown = parameters_line(row, self._parameters)
        line = f"[{count}/{state.limit}] trial {row['trial']} {row['state']}: {value}"
        return f"{line} after {epochs_text(row)} epochs ({shown}){_eta(state)}"

    def _standing(self, state: SearchState) -> str:
        line = f"[{count_ended(state.rows)}/{state.limit}] {counts_line(state.rows)}"
        first = ahead(state.rows) or next((row for row in state.rows if row["rank"] == 1), None)
        best = (
            ""
            if first is None
            else f"; best val {self._metric} {number(first['value'])}, trial {first['trial']}{mean_text(first)}"
        )
        return f"{line}{best}{_eta(state)}"

    def _render(self) -> RenderableType:
        return Text("starting Ray") if self._picture is None else self._picture

    def __enter__(self) -> SearchProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def _eta(state: SearchState) -> str:
    eta = eta_seconds(state.rows, state.limit, state.slots)
    return "" if eta is None or state.finished or state.halted else f", ETA {rough(eta)}"


def objective_directions(objectives: Sequence[Objective]) -> dict[str, str]:
    """Returns the objectives' names, and whether each is ``maximize`` or ``minimize``."""
    usual = dict.fromkeys(MEASURED_COSTS, "minimize")
    return {each.metric: each.direction or usual.get(each.metric, "maximize") for each in objectives}


class LiveTable:
    """A search at one moment, drawn to fit the terminal; its clock goes on. Arguments as of `SearchProgress`."""

    def __init__(
        self, state: SearchState, parameters: list[str], metric: str, objectives: dict[str, str], budget: BudgetConfig
    ) -> None:
        self._state, self._parameters, self._metric = state, parameters, metric
        self._objectives, self._budget = objectives, budget
        self._taken = time.monotonic()
        rows = state.rows
        self._counts = counts_line(rows)
        self._ended = count_ended(rows)
        self._running = sorted((row for row in rows if row["state"] == "running"), key=lambda row: row["trial"])
        self._best = [row for row in rows if row["rank"] != ""][:_BEST_ROWS]
        self._eta = None if state.halted else eta_seconds(rows, state.limit, state.slots)
        speeds = [row["samples_per_second"] for row in self._running if row["samples_per_second"] != ""]
        self._speed = sum(speeds) if speeds else None
        self._front = best_per_objective(rows, objectives) if len(objectives) > 1 else {}
        self._ahead = ahead(rows) if len(objectives) <= 1 else None
        self._front_size = sum(row.get("pareto") == 1 for row in rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, console.height
        head = [Text(line) for line in self._head()]
        head[0].stylize("bold")
        head += [Text(line, style="bold green") for line in self._best_lines()]
        if self._state.halted:
            head.append(Text(f"no further trial starts: {self._state.halted}", style="yellow"))
        head += [Text(line, style="yellow") for line in self._state.lines[:_BEST_ROWS]]
        for line in head:
            line.truncate(2 * width if line.style == "bold green" else 3 * width, overflow="ellipsis")
        used = sum(len(line.wrap(console, width)) for line in head) + 1
        room = max(height - used - 1, 1)
        parts: list[RenderableType] = [*head]
        if self._running:
            fitting = len(self._running) if len(self._running) <= room - _TABLE_HEAD else max(room - _TABLE_HEAD - 1, 1)
            parts.append(self._running_table(self._running[:fitting], width))
            room -= fitting + _TABLE_HEAD
            if fitting < len(self._running):
                parts.append(Text(f"and {len(self._running) - fitting} more running", style="dim"))
                room -= 1
        best = self._fitting_best(console, options, room)
        if best is not None:
            parts.append(best)
        yield Group(*parts)

    def _head(self) -> list[str]:
        state = self._state
        passed = time.monotonic() - self._taken
        elapsed = state.elapsed + (0.0 if state.finished else passed)
        rate = f"{self._ended / elapsed * HOUR:.3g} trials/h" if self._ended and elapsed > 0 else f"{UNKNOWN} trials/h"
        speed = UNKNOWN if self._speed is None else f"{self._speed:.4g}"
        eta = None if self._eta is None or passed > max(self._eta, 1.0) else self._eta - passed  # overdue: unknown
        parts = [f"{rough(elapsed)} so far", rate, f"{speed} queries/s"]
        if state.gpu_hours or self._budget.gpu_hours is not None:
            parts.append(f"{state.gpu_hours:.3g} GPU-h")
        parts += [f"ETA {rough(eta)}", f"left: {', '.join(self._left(elapsed))}"]
        return [f"{self._ended}/{state.limit} ended, {state.slots} at a time; {self._counts}", "  ".join(parts)]

    def _left(self, elapsed: float) -> list[str]:
        budget, state = self._budget, self._state
        left = [f"{max(state.limit - self._ended, 0)} trials"]
        if budget.hours is not None:
            left.append(duration_text(max(budget.hours * HOUR - elapsed, 0.0)))
        if budget.gpu_hours is not None:
            left.append(f"{max(budget.gpu_hours - state.gpu_hours, 0.0):.3g} GPU-h")
        if budget.target is not None and self._best:
            missing = budget.target - self._best[0]["value"]
            left.append(f"{missing:.4f} to the target" if missing > 0 else "target reached")
        return left

    def _best_lines(self) -> list[str]:
        if self._front:
            lines = [f"Pareto front of {self._front_size}"]
            for name, row in self._front.items():
                value = number(row[objective_column(name)])
                lines.append(f"best {name} {value}, trial {row['trial']}: {parameters_line(row, self._parameters)}")
            return lines
        if not self._best and self._ahead is None:
            return [f"best val {self._metric} {UNKNOWN}"]
        found = [("best", row) for row in self._best[:1]] + [
            (f"ahead, {row['state']}", row) for row in (self._ahead,) if row
        ]
        return [
            f"{what} val {self._metric} {number(row['value'])}, trial {row['trial']}, epoch {row['best_epoch']}"
            f"{mean_text(row)}: {parameters_line(row, self._parameters)}"
            for what, row in found
        ]

    def _running_table(self, rows: list[dict[str, Any]], width: int) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        widths = {"trial": 5, "running": _BAR, "epoch": 7, f"val {self._metric}": len(self._metric) + 4, "time": 7}
        for head, fixed in widths.items():
            table.add_column(head, justify="left" if head == "running" else "right", no_wrap=True, width=fixed)
        rest = width - sum(widths.values()) - _GAP * len(widths) - 1
        table.add_column("parameters", no_wrap=True, overflow="ellipsis", max_width=max(rest, 10))
        for row in rows:
            whole = row["of_epochs"]
            bar = ProgressBar(total=whole or 1, completed=row["epochs"] if whole else 0, width=_BAR)
            seconds = "" if row["seconds"] == "" else clock(row["seconds"])
            value = UNKNOWN if row["value"] == "" else number(row["value"])
            about = escape(parameters_line(row, self._parameters))
            table.add_row(str(row["trial"]), bar, epochs_text(row), value, seconds, about)
        return table

    def _fitting_best(self, console: Console, options: ConsoleOptions, room: int) -> RenderableType | None:
        """Returns as many of the best trials as there is room for."""
        for count in range(len(self._best), 0, -1):
            table = leaderboard_table(self._best, self._parameters, self._metric, count, list(self._objectives))
            if len(console.render_lines(table, options.update(height=None))) <= room:
                return table
        return None
