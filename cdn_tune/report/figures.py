"""What a figure of the page is, as plotly.js draws it, and what figures share.

Colours are names that begin with ``@``; the page puts those of its theme in their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from cdn_tune.report.wording import is_share
from cdn_tune.tuning.results.leaderboard import state_of

Plot = dict[str, Any]
SYMBOLS = {"complete": "circle", "pruned": "x-thin-open", "running": "diamond", "failed": "square-x-open"}


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        id: Names it within the page.
        title: Its heading.
        caption: What it shows, and what is left out.
        views: Plotly figures (``data``, ``layout``) by the name of the view; one is shown at a time.
        height: Pixels.
        width: Pixels that it needs at least; a narrower page scrolls within the figure.
    """

    id: str
    title: str
    caption: str
    views: dict[str, Plot]
    height: int = 380
    width: int = 0


def label(trial: FrozenTrial) -> str:
    """Returns what a trial is called where one points at it."""
    return f"trial {trial.number}, {state_of(trial)}"


def axes(x: str, y: str) -> Plot:
    """Returns a layout with titled axes."""
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}


def named(metric: str) -> str:
    """Returns the title of a val metric's axis."""
    return f"val {metric}, in %" if is_share(metric) else f"val {metric}"


def scale_of(metric: str) -> float:
    """Returns what a metric is multiplied by for its axis."""
    return 100.0 if is_share(metric) else 1.0


def rounded(value: float) -> float:
    """Returns a value to six digits, which is more than a figure shows."""
    return float(f"{value:.6g}")
