"""A running search: one live table in a terminal, a line per finished trial elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from cdn_tune.console.output import err
from cdn_tune.console.tables import leaderboard_table, parameters_line
from cdn_tune.tuning.search import SearchState


class SearchProgress:
    """Shows a search as it goes.

    Args:
        parameters: Dotted keys that are searched.
        metric: Name of the val metric that ranks.
    """

    def __init__(self, parameters: list[str], metric: str) -> None:
        self._parameters = parameters
        self._metric = metric
        self._started = time.monotonic()
        self._ended: set[int] = set()
        self._first = True
        self._state: SearchState | None = None
        self._live: Live | None = None
        if err.is_terminal:
            self._live = Live(console=err, refresh_per_second=4, transient=True, get_renderable=self._render)

    def on_change(self, state: SearchState) -> None:
        """Shows the search as it stands."""
        self._state = state
        if self._live is not None:
            return  # it looks by itself, so that the clock ticks between reports
        ended = [row for row in state.rows if row["state"] not in ("running", "waiting")]
        new = [row for row in ended if row["trial"] not in self._ended]
        self._ended.update(row["trial"] for row in new)
        for row in sorted(new, key=lambda row: row["trial"]) if not self._first else ():
            err.print(self._line(row, len(ended), state.limit), markup=False, soft_wrap=True)
        self._first = False

    def _line(self, row: dict[str, Any], ended: int, limit: int) -> str:
        value = f"val {self._metric} {row['value']}" if row["value"] != "" else row["reason"]
        shown = parameters_line(row, self._parameters)
        return f"[{ended}/{limit}] trial {row['trial']} {row['state']}: {value} after {row['epochs']} epochs ({shown})"

    def _render(self) -> RenderableType:
        return Text("starting Ray") if self._state is None else self._table(self._state)

    def _table(self, state: SearchState) -> RenderableType:
        counts = Counter(row["state"] for row in state.rows)
        ended = sum(counts[name] for name in ("complete", "pruned", "failed"))
        elapsed = time.monotonic() - self._started
        parts = [f"{ended}/{state.limit} trials", *(f"{count} {name}" for name, count in sorted(counts.items()))]
        parts.append(f"{state.slots} at a time")
        parts.append(f"{elapsed:.0f} s")
        best = next((row for row in state.rows if row["rank"] == 1), None)
        if best is not None:
            parts.append(f"best val {self._metric} {best['value']}")
        rows = sorted(state.rows, key=lambda row: row["state"] != "running")[:12]
        return Group(Text("  ".join(parts), style="bold"), leaderboard_table(rows, self._parameters, self._metric))

    def __enter__(self) -> SearchProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
