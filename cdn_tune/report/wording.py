"""Numbers and durations as the page shows them."""

from __future__ import annotations

import math
from typing import Any

from cdn_tune.config.tables import find_metric


def is_share(metric: str) -> bool:
    """Returns whether a name is a metric's, a share of 1 shown in per cent."""
    try:
        find_metric(metric.removeprefix("val ").partition(" ")[0])
    except ValueError:
        return False
    return True


def number(value: Any, metric: str = "", is_percent: bool = False) -> str:
    """Returns a value's text: shares in per cent, other numbers short, words as they are, nothing as a dash."""
    if value is None or value == "":
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and not math.isfinite(value):
        return str(value)
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
