"""The course of a run in figures: history, learning curves, trials on nodes, and the drawing at the top of the page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial

from cdn_tune.report.figures import (
    SYMBOLS,
    Figure,
    Plot,
    axes,
    duration,
    label,
    number,
    rounded,
    scale_of,
    scatter,
    titled,
)
from cdn_tune.report.record import RunRecord
from cdn_tune.report.trials import gpus_per_trial, seconds_of, segments_of
from cdn_tune.training.reports import EpochReport
from cdn_tune.tuning.results.leaderboard import PAUSED, state_of
from cdn_tune.tuning.study.ranking import own, ranking, trained, value_of

WIDTH, HEIGHT = 420, 150  # of the sparkline, pixels
_EDGE = 6  # pixels left free around it


def course(record: RunRecord, now: float) -> list[Figure]:
    """Returns the figures that have something to show; running trials have run up to `now`, in epoch seconds."""
    if record.is_search:
        figures = [_history(record, now), _trial_curves(record), _gantt(record, now)]
    else:
        figures = [_train_curves(record)]
    return [figure for figure in figures if figure]


def _history(record: RunRecord, now: float) -> Figure | None:
    """Returns what each trial reached and the best so far, by trial, time and hours; None before a val metric."""
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
    hours = {at: (end - begun) / 3600 for at, end in ends.items()}
    numbers = {trial.number: float(trial.number) for trial in trials}
    unit = "GPU-hours" if gpus else "trial-hours (no GPU)"
    views = {
        "by trial": _history_plot(record, trials, numbers, "trial"),
        "by time": _history_plot(record, by_end, hours, "hours since the search began"),
        f"by {'GPU' if gpus else 'trial'}-hours": _history_plot(record, by_end, cost, unit),
    }
    caption = (
        f"Each mark is a trial's best val {record.metric}; the line is the best so far. By time and by hours a trial "
        "stands where it ended."
    )
    return Figure("history", "History and best so far", caption, views)


def _history_plot(record: RunRecord, trials: Sequence[FrozenTrial], at: Mapping[int, float], unit: str) -> Plot:
    points = [
        (rounded(at[trial.number]), (value_of(trial) or 0) * scale_of(record.metric), state_of(trial), label(trial))
        for trial in trials
    ]
    traces: list[Plot] = []
    for state in ("complete", "pruned", "running", PAUSED, "failed"):
        if here := [point for point in points if point[2] == state]:
            marker = {"color": f"@{state}", "symbol": SYMBOLS[state], "size": 8, "line": {"width": 1.5}}
            x, y = [point[0] for point in here], [rounded(point[1]) for point in here]
            traces.append(scatter("markers", state, x, y, text=[point[3] for point in here], marker=marker))
    best, steps = -math.inf, []
    for x_here, value, state, _ in points:
        if state in ("complete", "pruned"):
            best = max(best, value)
            steps.append((x_here, rounded(best)))
    if steps:
        steps.append((rounded(max(at.values())), rounded(best)))
        line = {"shape": "hv", "color": "@accent", "width": 2}
        hover = "best so far %{y:.4~g}<extra></extra>"
        x, y = [step[0] for step in steps], [step[1] for step in steps]
        traces.append(scatter("lines", "best so far", x, y, line=line, hovertemplate=hover))
    return {"data": traces, "layout": axes(unit, titled(f"val {record.metric}"))}


def _trial_curves(record: RunRecord) -> Figure | None:
    """Returns the curves of a search's trials; None before the first epoch."""
    trials = own(record.trials)
    best = next((trial.number for trial in ranking(record.trials)), None)
    curves = {trial.number: _curve(trial, record) for trial in trials}
    if not any(curves.values()):
        return None
    layout = axes(str(record.attributes.get("unit", "epoch")), titled(f"val {record.metric}"))
    views = {f"val {record.metric}": _curve_plot(trials, curves, best, scale_of(record.metric), layout)}
    losses = {
        trial.number: [(entry["epoch"], entry["loss"]) for entry in record.curves.get(trial.number, [])]
        for trial in trials
    }
    if any(losses.values()):
        layout = axes("epoch", "training loss")
        layout["yaxis"]["type"] = "log"
        views["training loss"] = _curve_plot(trials, losses, best, 1.0, layout)
    caption = (
        "One line per trial, the best one in bold; a pruned trial ends at a cross, a paused one at an open diamond."
    )
    return Figure("curves", "Learning curves", caption, views)


def _curve(trial: FrozenTrial, record: RunRecord) -> list[tuple[float, float]]:
    """Returns a trial's val metric by epoch as recorded; the study's own best-so-far values if there is no record."""
    entries = [entry for entry in record.curves.get(trial.number, []) if entry.get("val")]
    if entries and record.attributes.get("unit", "epoch") == "epoch":
        return [(entry["epoch"], entry["value"]) for entry in entries]
    scale = 1000 if record.attributes.get("unit") == "seconds" else 1  # on record as milliseconds
    return [(step / scale, value) for step, value in sorted(trial.intermediate_values.items())]


def _curve_plot(
    trials: Sequence[FrozenTrial],
    curves: Mapping[int, Sequence[tuple[float, float]]],
    best: int | None,
    scale: float,
    layout: Plot,
) -> Plot:
    """Returns all curves of a state as one trace with gaps: five hundred traces would be slow."""
    traces: list[Plot] = []
    for state in ("failed", "pruned", "complete", PAUSED, "running", "best"):
        x: list[float | None] = []
        y: list[float | None] = []
        text: list[str] = []
        ends: list[tuple[float, float, str]] = []
        for trial in trials:
            if state != ("best" if trial.number == best else state_of(trial)):
                continue
            points = [(at, rounded(value * scale)) for at, value in curves[trial.number] if math.isfinite(value)]
            if points:
                x += [*(at for at, _ in points), None]
                y += [*(value for _, value in points), None]
                text += [label(trial)] * (len(points) + 1)
                ends.append((*points[-1], label(trial)))
        if not x:
            continue
        is_best = state == "best"
        name, colour = (f"best: trial {best}", "@accent") if is_best else (state, f"@{state}")
        opacity = 1 if is_best or len(trials) < 20 else 0.6
        line = {"color": colour, "width": 3 if is_best else 1}
        traces.append(scatter("lines", name, x, y, text=text, line=line, opacity=opacity))
        if state in ("pruned", "failed", PAUSED):
            marker = {"color": colour, "symbol": SYMBOLS[state], "size": 7, "line": {"width": 1.5}}
            columns: list[list[Any]] = [list(column) for column in zip(*ends, strict=True)]
            more = {"showlegend": False, "text": columns[2], "marker": marker}
            traces.append(scatter("markers", f"{state} here", columns[0], columns[1], **more))
    return {"data": traces, "layout": layout}


def _train_curves(record: RunRecord) -> Figure | None:
    """Returns the curves of a train run; None before the first epoch."""
    entries = record.curves.get(None, [])
    if not entries:
        return None
    measured = [entry for entry in entries if entry.get("val")]
    views: dict[str, Plot] = {}
    if measured:
        epochs = [entry["epoch"] for entry in measured]
        traces = []
        for name in [record.metric, *(name for name in measured[-1]["val"] if name != record.metric)]:
            if all(name in entry["val"] for entry in measured):
                y = [rounded(entry["val"][name] * scale_of(name)) for entry in measured]
                hover = "epoch %{x}: %{y:.4~g}<extra>" + name + "</extra>"
                line = {"width": 3 if name == record.metric else 1.5}
                traces.append(scatter("lines", name, epochs, y, line=line, hovertemplate=hover))
        views["val metrics"] = {"data": traces, "layout": axes("epoch", "val, in %")}
    parts = [EpochReport.read(entry).losses for entry in entries]
    names = list(parts[-1]) if len(parts[-1]) > 1 else []  # the only part is the whole
    losses = {"loss": [entry["loss"] for entry in entries]}
    losses |= {name: [each.get(name) for each in parts] for name in names}
    rates = {"learning rate": [entry["learning_rate"] for entry in entries]}
    for title, columns in (("training loss", losses), ("learning rate", rates)):
        traces = []
        for place, (name, values) in enumerate(columns.items()):
            hover = "epoch %{x}: %{y:.4~g}<extra>" + (name if len(columns) > 1 else "") + "</extra>"
            main: Plot = {"color": "@accent", "width": 3 if len(columns) > 1 else 2}
            line = {"width": 1.5} if place else main
            x = [entry["epoch"] for entry in entries]
            traces.append(scatter("lines", name, x, values, line=line, hovertemplate=hover))
        views[title] = {"data": traces, "layout": axes("epoch", title)}
    caption = "What was recorded after every epoch." + (
        " The parts of the loss are without their weights." * bool(names)
    )
    return Figure("curves", "Learning curves", caption, views)


def _gantt(record: RunRecord, now: float) -> Figure | None:
    """Returns where trials ran and when; None before the first trial."""
    runs = [
        (node, start, end, trial) for trial in trained(record.trials) for node, start, end in segments_of(trial, now)
    ]
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
        text = f"{label(trial)}<br>{duration(end - start)}"
        bar = (f"{node} · {free + 1}", rounded((start - begun) / length), rounded((end - start) / length), text)
        bars.setdefault(state_of(trial), []).append(bar)
    rows = [f"{node} · {lane + 1}" for node in sorted(lanes) for lane in range(len(lanes[node]))]
    traces = []
    for state in ("complete", "pruned", "failed", PAUSED, "running"):
        if state in bars:
            names, starts, widths, texts = (list(column) for column in zip(*bars[state], strict=True))
            marker = {"color": f"@{state}", "line": {"color": "@surface", "width": 1 if len(runs) < 60 else 0}}
            look = {"textposition": "none", "hovertemplate": "%{text}<extra></extra>", "marker": marker}
            what = {"type": "bar", "orientation": "h", "name": state}
            traces.append({**what, "y": names, "base": starts, "x": widths, "text": texts, **look})
    layout = axes(f"{unit} since the search began", "") | {"barmode": "overlay"}
    layout["yaxis"] |= {"categoryorder": "array", "categoryarray": rows[::-1], "automargin": True, "type": "category"}
    caption = (
        "A bar per stretch in which a trial ran; a row per place on a node. A trial that was interrupted has several."
    )
    height = min(900, 150 + 30 * len(rows))
    return Figure("gantt", "Trials on nodes", caption, {"trials": {"data": traces, "layout": layout}}, height)


class Sparkline(NamedTuple):
    """A drawing of WIDTH x HEIGHT pixels that needs no script."""

    dots: list[tuple[float, float, str]]  # (x, y, state) per trial with a value
    path: str  # the best so far, as an SVG path
    caption: str


def sparkline(record: RunRecord) -> Sparkline | None:
    """Returns each trial's value and the best so far, by trial; None for a train run or before two values."""
    values = [(trial.number, value_of(trial), state_of(trial)) for trial in own(record.trials)]
    points = [(at, value, state) for at, value, state in values if value is not None]
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
    caption = f"Best val {record.metric} so far, over {len(points)} trials: {number(best, record.metric)} now"
    return Sparkline([(*place(at, value), state) for at, value, state in points], path, caption)
