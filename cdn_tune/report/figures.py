"""What the page's tables and figures share: numbers and durations as text, and figures as plotly.js draws them.

Colours are names that begin with ``@``; the page puts those of its theme in their place.
"""

from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from cdn_tune.config.tables import find_metric
from cdn_tune.tuning.results.leaderboard import state_of

_MOST = 1e300
Plot = dict[str, Any]
SYMBOLS = {
    "complete": "circle",
    "pruned": "x-thin-open",
    "running": "diamond",
    "paused": "diamond-open",
    "failed": "square-x-open",
}


@dataclass(frozen=True)
class Figure:
    """A figure of the page."""

    id: str  # unique within the page
    title: str
    caption: str  # what it shows, and what is left out
    views: dict[str, Plot]  # Plotly figures (``data``, ``layout``) by the name of the view; one is shown at a time
    height: int = 380  # pixels
    width: int = 0  # pixels that it needs at least; a narrower page scrolls within the figure


def scatter(mode: str, name: str, x: list[Any], y: list[Any], **more: Any) -> Plot:
    """Returns a trace of points or lines; the hover text is that of each point unless `more` has another one."""
    hover = "%{text}<br>%{y:.4~g}<extra></extra>"
    return {"type": "scatter", "mode": mode, "name": name, "x": x, "y": y, "hovertemplate": hover, **more}


def label(trial: FrozenTrial) -> str:
    """Returns the name of a trial's point."""
    return f"trial {trial.number}, {state_of(trial)}"


def axes(x: str, y: str) -> Plot:
    """Returns a layout with titled axes."""
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}


def is_share(metric: str) -> bool:
    """Returns whether a name is a metric's, a share of 1 shown in per cent."""
    try:
        find_metric(metric.removeprefix("val ").partition(" ")[0])
    except ValueError:
        return False
    return True


def titled(metric: str) -> str:
    """Returns a metric's name, with its unit where that is per cent."""
    return f"{metric}, in %" if is_share(metric) else metric


def scale_of(metric: str) -> float:
    """Returns the factor of a metric on its axis."""
    return 100.0 if is_share(metric) else 1.0


def rounded(value: float) -> float:
    """Returns a value to six digits, which is more than a figure shows."""
    return float(f"{value:.6g}")


def is_usual(value: float) -> bool:
    """Returns whether a number is finite, and far from what no calculation holds."""
    return abs(value) <= _MOST


def number(value: Any, metric: str = "", is_percent: bool = False) -> str:
    """Returns a value's text: shares in per cent, other numbers short, words as they are, nothing as a dash."""
    if value is None or value == "":
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and not is_usual(value):
        return str(value)[:9]
    if isinstance(value, int | float) and (is_percent or is_share(metric)):
        return f"{100 * value:.2f}"
    if isinstance(value, float):
        return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.2e}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value)
    return str(value)


def duration(seconds: float | None) -> str:
    """Returns a duration in its two largest units: ``2 h 05 min``."""
    if seconds is None:
        return "\u2013"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"
