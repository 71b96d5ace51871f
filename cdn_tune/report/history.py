"""The history of a search: what each trial reached, and the best so far, by trial, time and hours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optuna.trial import FrozenTrial

from cdn_tune.report.figures import SYMBOLS, Figure, Plot, axes, label, named, rounded, scale_of
from cdn_tune.report.record import RunRecord
from cdn_tune.report.trials import gpus_per_trial, seconds_of, segments_of
from cdn_tune.tuning.results.leaderboard import STATES
from cdn_tune.tuning.study.ranking import own, value_of


def history(record: RunRecord, now: float) -> Figure | None:
    """Returns the figure; None before the first val metric."""
    trials = [trial for trial in own(record.trials) if value_of(trial) is not None]
    if not trials:
        return None
    gpus = gpus_per_trial(record)
    begun = min(start for trial in own(record.trials) for _, start, _ in segments_of(trial, now))
    ends = {trial.number: max(end for _, _, end in segments_of(trial, now)) for trial in trials}
    by_end = sorted(trials, key=lambda trial: ends[trial.number])
    spent, cost = 0.0, {}
    for trial in by_end:
        spent += seconds_of(trial, now) * (gpus or 1) / 3600
        cost[trial.number] = spent
    hours = {number: (end - begun) / 3600 for number, end in ends.items()}
    numbers = {trial.number: float(trial.number) for trial in trials}
    views = {
        "by trial": _plot(record, trials, numbers, "trial"),
        "by time": _plot(record, by_end, hours, "hours since the search began"),
    }
    unit = "GPU-hours" if gpus else "trial-hours (no GPU)"
    views[f"by {'GPU' if gpus else 'trial'}-hours"] = _plot(record, by_end, cost, unit)
    return Figure(
        "history",
        "History and best so far",
        f"Each mark is a trial's best val {record.metric}; the line is the best so far. By time and by hours a trial "
        "stands where it ended.",
        views,
    )


def _plot(record: RunRecord, trials: Sequence[FrozenTrial], at: dict[int, float], unit: str) -> Plot:
    scale = scale_of(record.metric)
    traces: list[Plot] = []
    for state in ("complete", "pruned", "running", "failed"):
        here = [trial for trial in trials if STATES[trial.state] == state]
        if here:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": state,
                    "x": [rounded(at[trial.number]) for trial in here],
                    "y": [rounded((value_of(trial) or 0) * scale) for trial in here],
                    "text": [label(trial) for trial in here],
                    "hovertemplate": "%{text}<br>%{y:.4~g}<extra></extra>",
                    "marker": {"color": f"@{state}", "symbol": SYMBOLS[state], "size": 8, "line": {"width": 1.5}},
                }
            )
    best, steps = -math.inf, []
    for trial in trials:
        if STATES[trial.state] in ("complete", "pruned"):
            best = max(best, (value_of(trial) or 0) * scale)
            steps.append((at[trial.number], best))
    if steps:
        steps.append((max(at.values()), best))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "best so far",
                "x": [rounded(x) for x, _ in steps],
                "y": [rounded(y) for _, y in steps],
                "line": {"shape": "hv", "color": "@accent", "width": 2},
                "hovertemplate": "best so far %{y:.4~g}<extra></extra>",
            }
        )
    return {"data": traces, "layout": axes(unit, named(record.metric))}
