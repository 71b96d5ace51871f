"""The course of a search at a glance: a small drawing that needs no script, for the top of the page."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cdn_tune.report.record import RunRecord
from cdn_tune.report.wording import number
from cdn_tune.tuning.results.leaderboard import STATES
from cdn_tune.tuning.study.ranking import own, value_of

WIDTH, HEIGHT = 420, 150
_EDGE = 6  # pixels left free around


@dataclass(frozen=True)
class Sparkline:
    """A drawing of WIDTH x HEIGHT.

    Attributes:
        dots: (x, y, state) per trial with a value.
        path: The best so far, as an SVG path.
        told: What it shows, in words.
    """

    dots: list[tuple[float, float, str]]
    path: str
    told: str


def sparkline(record: RunRecord) -> Sparkline | None:
    """Returns each trial's value and the best so far, by trial; None for a train run or before two values."""
    points = [(trial.number, value_of(trial) or 0.0, STATES[trial.state]) for trial in own(record.trials)]
    points = [point for point, trial in zip(points, own(record.trials), strict=True) if value_of(trial) is not None]
    if len(points) < 2:
        return None
    low, high = min(value for _, value, _ in points), max(value for _, value, _ in points)
    first, last = points[0][0], points[-1][0]

    def place(at: int, value: float) -> tuple[float, float]:
        across = (at - first) / max(1, last - first)
        up = (value - low) / (high - low) if high > low else 0.5
        x, y = _EDGE + across * (WIDTH - 2 * _EDGE), HEIGHT - _EDGE - up * (HEIGHT - 2 * _EDGE)
        return round(x, 1), round(y, 1)

    best = -math.inf
    steps: list[str] = []
    for at, value, state in points:
        if state in ("complete", "pruned") and value > best:
            x, y = place(at, value)
            steps.append(f"H{x}V{y}" if steps else f"M{x} {y}")
            best = value
    path = "".join(steps) + (f"H{WIDTH - _EDGE}" if steps else "")
    told = f"Best val {record.metric} so far, over {len(points)} trials: {number(best, record.metric)} now"
    return Sparkline([(*place(at, value), state) for at, value, state in points], path, told)
