"""Where trials ran and when: a Gantt chart of trials on nodes."""

from __future__ import annotations

from cdn_tune.report.figures import Figure, axes, label, rounded
from cdn_tune.report.record import RunRecord
from cdn_tune.report.trials import segments_of
from cdn_tune.report.wording import duration
from cdn_tune.tuning.results.leaderboard import STATES
from cdn_tune.tuning.study.ranking import own


def gantt(record: RunRecord, now: float) -> Figure | None:
    """Returns the chart; None before the first trial.

    Args:
        record: The run.
        now: Epoch seconds up to which running trials have run.
    """
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
        text = f"{label(trial)}<br>{duration(end - start)}"
        bar = (f"{node} · {free + 1}", (start - begun) / length, (end - start) / length, text)
        bars.setdefault(STATES[trial.state], []).append(bar)
    rows = [f"{node} · {lane + 1}" for node in sorted(lanes) for lane in range(len(lanes[node]))]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": state,
            "y": [row for row, _, _, _ in bars[state]],
            "base": [rounded(start) for _, start, _, _ in bars[state]],
            "x": [rounded(width) for _, _, width, _ in bars[state]],
            "text": [label for _, _, _, label in bars[state]],
            "textposition": "none",
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": f"@{state}", "line": {"color": "@surface", "width": 1 if len(runs) < 60 else 0}},
        }
        for state in ("complete", "pruned", "failed", "running")
        if state in bars
    ]
    layout = axes(f"{unit} since the search began", "")
    layout["barmode"] = "overlay"
    layout["yaxis"] |= {"categoryorder": "array", "categoryarray": rows[::-1], "automargin": True, "type": "category"}
    return Figure(
        "gantt",
        "Trials on nodes",
        "A bar per stretch in which a trial ran; a row per place on a node. A trial that was interrupted has several.",
        {"trials": {"data": traces, "layout": layout}},
        height=min(900, 150 + 30 * len(rows)),
    )
