"""Learning curves: of all trials of a search, or of a train run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optuna.trial import FrozenTrial

from cdn_tune.report.figures import SYMBOLS, Figure, Plot, axes, label, named, rounded, scale_of
from cdn_tune.report.record import RunRecord
from cdn_tune.tuning.results.leaderboard import STATES
from cdn_tune.tuning.study.ranking import own, ranking


def trial_curves(record: RunRecord) -> Figure | None:
    """Returns the curves of a search's trials; None before the first epoch."""
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
        "curves", "Learning curves", "One line per trial, the best one in bold; a pruned trial ends at a cross.", views
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
    scale = 1.0 if metric else scale_of(record.metric)
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
                y += [*(rounded(value) for _, value in points), None]
                text += [label(trial)] * (len(points) + 1)
                ends.append((*points[-1], label(trial)))
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
                    "y": [rounded(value) for _, value, _ in ends],
                    "text": [label for _, _, label in ends],
                    "hovertemplate": "%{text}<br>%{y:.4~g}<extra></extra>",
                    "marker": {"color": colour, "symbol": SYMBOLS[state], "size": 7, "line": {"width": 1.5}},
                }
            )
    unit = unit or str(record.attributes.get("unit", "epoch"))
    return {"data": traces, "layout": axes(unit, metric or named(record.metric))}


def train_curves(record: RunRecord) -> Figure | None:
    """Returns the curves of a train run; None before the first epoch."""
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
                "y": [rounded(entry["val"][name] * scale_of(name)) for entry in measured],
                "line": {"width": 3 if name == record.metric else 1.5},
                "hovertemplate": "epoch %{x}: %{y:.4~g}<extra>" + name + "</extra>",
            }
            for name in names
            if all(name in entry["val"] for entry in measured)
        ]
        views["val metrics"] = {"data": traces, "layout": axes("epoch", "val, in %")}
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
        views[title] = {"data": [trace], "layout": axes("epoch", title)}
    return Figure("curves", "Learning curves", "What was recorded after every epoch.", views)
