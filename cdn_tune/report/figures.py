"""Figures of a run's course, as plotly.js draws them: history, learning curves, trials on nodes.

Colours are names that begin with ``@``; the page puts those of its theme in their place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from cdn_tune.report.record import RunRecord
from cdn_tune.report.trials import STATES, gpus_per_trial, seconds_of, segments_of, shown_state
from cdn_tune.report.wording import duration, is_share
from cdn_tune.tuning.ranking import own, ranking, value_of

Plot = dict[str, Any]
_SYMBOLS = {"complete": "circle", "pruned": "x-thin-open", "running": "diamond", "failed": "square-x-open"}


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


def course(record: RunRecord, now: float) -> list[Figure]:
    """Returns the figures of a search's or a train run's course, those that have something to show."""
    if not record.is_search:
        return [figure for figure in (_train_curves(record),) if figure]
    figures = (_history(record, now), _curves(record), _gantt(record, now))
    return [figure for figure in figures if figure]


def _history(record: RunRecord, now: float) -> Figure | None:
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
        "by trial": _history_plot(record, trials, numbers, "trial"),
        "by time": _history_plot(record, by_end, hours, "hours since the search began"),
    }
    unit = "GPU-hours" if gpus else "trial-hours (no GPU)"
    views[f"by {'GPU' if gpus else 'trial'}-hours"] = _history_plot(record, by_end, cost, unit)
    return Figure(
        "history",
        "History and best so far",
        f"Each mark is a trial's best val {record.metric}; the line is the best so far. By time and by hours a trial "
        "stands where it ended.",
        views,
    )


def _history_plot(record: RunRecord, trials: Sequence[FrozenTrial], at: dict[int, float], unit: str) -> Plot:
    scale = _scale(record.metric)
    traces: list[Plot] = []
    for state in ("complete", "pruned", "running", "failed"):
        here = [trial for trial in trials if STATES[trial.state] == state]
        if here:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": state,
                    "x": [_round(at[trial.number]) for trial in here],
                    "y": [_round((value_of(trial) or 0) * scale) for trial in here],
                    "text": [_label(trial) for trial in here],
                    "hovertemplate": "%{text}<br>%{y:.4~g}<extra></extra>",
                    "marker": {"color": f"@{state}", "symbol": _SYMBOLS[state], "size": 8, "line": {"width": 1.5}},
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
                "x": [_round(x) for x, _ in steps],
                "y": [_round(y) for _, y in steps],
                "line": {"shape": "hv", "color": "@accent", "width": 2},
                "hovertemplate": "best so far %{y:.4~g}<extra></extra>",
            }
        )
    return {"data": traces, "layout": _axes(unit, _named(record.metric))}


def _curves(record: RunRecord) -> Figure | None:
    trials = own(record.trials)
    best = next((trial.number for trial in ranking(record.trials)), None)
    curves = {trial.number: _curve(trial, record) for trial in trials}
    if not any(curves.values()):
        return None
    views = {f"val {record.metric}": _curve_plot(record, trials, curves, best)}
    losses = {
        trial.number: [(entry["epoch"], entry["loss"]) for entry in record.curves.get(trial.number, [])]
        for trial in trials
    }
    if any(losses.values()):
        plot = _curve_plot(record, trials, losses, best, metric="training loss", unit="epoch")
        plot["layout"]["yaxis"]["type"] = "log"
        views["training loss"] = plot
    return Figure(
        "curves",
        "Learning curves",
        "One line per trial, the best one in bold; a pruned trial ends at a cross.",
        views,
    )


def _curve(trial: FrozenTrial, record: RunRecord) -> list[tuple[float, float]]:
    """A trial's val metric by epoch as recorded; by the study's own best-so-far values where there is no record."""
    entries = [entry for entry in record.curves.get(trial.number, []) if entry.get("val")]
    if entries and record.attributes.get("unit", "epoch") == "epoch":
        return [(entry["epoch"], entry["value"]) for entry in entries]
    return sorted(trial.intermediate_values.items())


def _curve_plot(
    record: RunRecord,
    trials: Sequence[FrozenTrial],
    curves: dict[int, list[tuple[float, float]]],
    best: int | None,
    metric: str | None = None,
    unit: str | None = None,
) -> Plot:
    """All curves of a state are one trace with gaps: five hundred traces would be slow."""
    scale = 1.0 if metric else _scale(record.metric)
    traces: list[Plot] = []
    for state in ("failed", "pruned", "complete", "running", "best"):
        x: list[float | None] = []
        y: list[float | None] = []
        text: list[str] = []
        ends: list[tuple[float, float, str]] = []
        for trial in trials:
            is_best = trial.number == best
            if is_best != (state == "best") or not (is_best or STATES[trial.state] == state):
                continue
            points = [(at, value * scale) for at, value in curves[trial.number] if math.isfinite(value)]
            if points:
                x += [*(at for at, _ in points), None]
                y += [*(_round(value) for _, value in points), None]
                text += [_label(trial)] * (len(points) + 1)
                ends.append((*points[-1], _label(trial)))
        if not x:
            continue
        name = f"best: trial {best}" if state == "best" else state
        colour = "@accent" if state == "best" else f"@{state}"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": x,
                "y": y,
                "text": text,
                "line": {"color": colour, "width": 3 if state == "best" else 1},
                "opacity": 1 if state == "best" or len(trials) < 20 else 0.6,
                "hovertemplate": "%{text}<br>%{y:.4~g}<extra></extra>",
            }
        )
        if state in ("pruned", "failed"):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"{state} here",
                    "showlegend": False,
                    "x": [at for at, _, _ in ends],
                    "y": [_round(value) for _, value, _ in ends],
                    "text": [label for _, _, label in ends],
                    "hovertemplate": "%{text}<br>%{y:.4~g}<extra></extra>",
                    "marker": {"color": colour, "symbol": _SYMBOLS[state], "size": 7, "line": {"width": 1.5}},
                }
            )
    unit = unit or str(record.attributes.get("unit", "epoch"))
    return {"data": traces, "layout": _axes(unit, metric or _named(record.metric))}


def _train_curves(record: RunRecord) -> Figure | None:
    entries = record.curves.get(None, [])
    if not entries:
        return None
    measured = [entry for entry in entries if entry.get("val")]
    views: dict[str, Plot] = {}
    if measured:
        names = [record.metric, *(name for name in measured[-1]["val"] if name != record.metric)]
        traces = [
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": [entry["epoch"] for entry in measured],
                "y": [_round(entry["val"][name] * _scale(name)) for entry in measured],
                "line": {"width": 3 if name == record.metric else 1.5},
                "hovertemplate": "epoch %{x}: %{y:.4~g}<extra>" + name + "</extra>",
            }
            for name in names
            if all(name in entry["val"] for entry in measured)
        ]
        views["val metrics"] = {"data": traces, "layout": _axes("epoch", "val, in %")}
    for name, title in (("loss", "training loss"), ("learning_rate", "learning rate")):
        trace = {
            "type": "scatter",
            "mode": "lines",
            "name": title,
            "x": [entry["epoch"] for entry in entries],
            "y": [entry[name] for entry in entries],
            "line": {"color": "@accent", "width": 2},
            "hovertemplate": "epoch %{x}: %{y:.4~g}<extra></extra>",
        }
        views[title] = {"data": [trace], "layout": _axes("epoch", title)}
    return Figure("curves", "Learning curves", "What was recorded after every epoch.", views)


def _gantt(record: RunRecord, now: float) -> Figure | None:
    runs = [(node, start, end, trial) for trial in own(record.trials) for node, start, end in segments_of(trial, now)]
    if not runs:
        return None
    begun = min(start for _, start, _, _ in runs)
    unit, length = ("hours", 3600.0) if max(end for _, _, end, _ in runs) - begun > 7200 else ("minutes", 60.0)
    lanes: dict[str, list[float]] = {}
    bars: dict[str, list[tuple[str, float, float, str]]] = {}
    for node, start, end, trial in sorted(runs, key=lambda item: (item[0], item[1])):
        busy = lanes.setdefault(node, [])
        free = next((lane for lane, until in enumerate(busy) if until <= start + 1e-3), len(busy))
        busy[free : free + 1] = [end]
        label = f"{_label(trial)}<br>{duration(end - start)}"
        bar = (f"{node} · {free + 1}", (start - begun) / length, (end - start) / length, label)
        bars.setdefault(STATES[trial.state], []).append(bar)
    rows = [f"{node} · {lane + 1}" for node in sorted(lanes) for lane in range(len(lanes[node]))]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": state,
            "y": [row for row, _, _, _ in bars[state]],
            "base": [_round(start) for _, start, _, _ in bars[state]],
            "x": [_round(width) for _, _, width, _ in bars[state]],
            "text": [label for _, _, _, label in bars[state]],
            "textposition": "none",
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": f"@{state}", "line": {"color": "@surface", "width": 1 if len(runs) < 60 else 0}},
        }
        for state in ("complete", "pruned", "failed", "running")
        if state in bars
    ]
    layout = _axes(f"{unit} since the search began", "")
    layout["barmode"] = "overlay"
    layout["yaxis"] |= {"categoryorder": "array", "categoryarray": rows[::-1], "automargin": True, "type": "category"}
    return Figure(
        "gantt",
        "Trials on nodes",
        "A bar per stretch in which a trial ran; a row per place on a node. A trial that was interrupted has several.",
        {"trials": {"data": traces, "layout": layout}},
        height=min(900, 150 + 30 * len(rows)),
    )


def _label(trial: FrozenTrial) -> str:
    return f"trial {trial.number}, {shown_state(trial)}"


def _axes(x: str, y: str) -> Plot:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}


def _named(metric: str) -> str:
    return f"val {metric}, in %" if is_share(metric) else f"val {metric}"


def _scale(metric: str) -> float:
    return 100.0 if is_share(metric) else 1.0


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def unfinished(record: RunRecord) -> bool:
    """Returns whether some trial is recorded as running."""
    return any(trial.state == TrialState.RUNNING for trial in own(record.trials))
