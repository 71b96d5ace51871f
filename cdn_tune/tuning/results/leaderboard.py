"""leaderboard.csv and leaderboard.json: every entry of the study, its state, values, parameters and cost."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config.space import MEASURED_COSTS
from cdn_tune.training.runs.files import write_text
from cdn_tune.tuning.study.ranking import pareto_front, ranking, role_of, superseded, value_of

LEADERBOARD = "leaderboard.csv"
LEADERBOARD_JSON = "leaderboard.json"
HOUR = 3600.0
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
TRIED = frozenset(STATES.values())  # states of trials; entries of other roles have their role as state
ENDED = ("complete", "pruned", "failed")
_ORDER = ("running", "waiting", "failed", "learned", "copy", "refused")
_FORMULA = ("=", "+", "-", "@", "\t", "\n")  # what a spreadsheet would compute

Row = dict[str, Any]


def leaderboard(
    trials: Sequence[FrozenTrial],
    parameters: Sequence[str],
    metrics: Sequence[str],
    *,
    directions: Sequence[StudyDirection] = (),
    gpus: float = 0.0,
) -> list[Row]:
    """Returns one row per entry: ranked trials first, then running, failed, learned, copied and refused ones.

    What an entry has no value for is an empty text. Values per layer are one list under the key without its index.

    Args:
        trials: All entries of the study.
        parameters: Dotted keys that are searched.
        metrics: Names of the val metrics.
        directions: Of the objectives; several add the column ``pareto``, 1 for trials of the front.
        gpus: GPUs that a trial occupies.
    """
    ranked = ranking(trials)
    places = {trial.number: place for place, trial in enumerate(ranked, start=1)}
    others = sorted(
        (trial for trial in trials if trial.number not in places),
        key=lambda trial: (_ORDER.index(state) if (state := state_of(trial)) in _ORDER else -1, trial.number),
    )
    several = len(directions) > 1
    front = {trial.number for trial in pareto_front(trials, directions)} if several else set()
    again = superseded(trials)
    rows = []
    for trial in (*ranked, *others):
        note = trial.user_attrs
        values, occupied = note.get("val", {}), occupied_seconds(note)
        row: Row = {"rank": places.get(trial.number, "")}
        if several:
            row["pareto"] = 1 if trial.number in front else ""
        row |= {
            "trial": trial.number,
            "state": state_of(trial),
            "value": _shown(value_of(trial)),
            "best_epoch": note.get("best_epoch", ""),
            "epochs": note.get("epoch", max(trial.intermediate_values, default=0)),
            "of_epochs": note.get("epochs", ""),
            "seconds": _shown(note.get("seconds"), 1),
            "gpu_hours": _shown(occupied * gpus / HOUR, 5),
        }
        row |= _sampled(trial.params, parameters)
        row |= {f"val {name}": _shown(values.get(name)) for name in metrics}
        row |= {
            "parameters": note.get("parameters", ""),
            "memory_gb": _shown(note.get("memory_gb"), 3),
            "latency_ms": _shown(note.get("latency_ms"), 3),
            "loss": _shown(note.get("loss"), 5),
            "samples_per_second": _shown(note.get("samples_per_second"), 1),
            "node": " ".join(dict.fromkeys(str(node) for node, *_ in note.get("segments", ()))),
            "retry_of": note.get("retry_of", ""),
            "copy_of": note.get("copy_of", ""),
            "learned_from": note.get("learned_from", ""),
            "tried_again": 1 if trial.number in again else "",
            "failure": note.get("failure", ""),
            "reason": note.get("reason", ""),
        }
        rows.append(row)
    return rows


def state_of(trial: FrozenTrial) -> str:
    """Returns the state of a trial in words; of an entry that is no trial, its role."""
    role = role_of(trial)
    return STATES[trial.state] if role == "trial" else role


def occupied_seconds(note: Mapping[str, Any]) -> float:
    """Returns how long a trial has occupied its resources: its segments, or at least its training and evaluation."""
    covered, until = 0.0, -math.inf
    for _, start, end in sorted(note.get("segments", ()), key=lambda segment: float(segment[1])):
        if end is not None and end > until:  # workers of a group run side by side
            covered += end - max(start, until)
            until = end
    return max(covered, float(note.get("seconds") or 0.0))


def objective_column(name: str) -> str:
    """Returns the column that holds an objective."""
    return name if name in MEASURED_COSTS else f"val {name}"


def write_leaderboard(run: Path, rows: Sequence[Row]) -> Path:
    """Writes ``leaderboard.csv`` and ``leaderboard.json`` into the run folder; returns the former."""
    path = run / LEADERBOARD
    write_text(path, csv_text(rows))
    write_text(run / LEADERBOARD_JSON, json_text(rows))
    return path


def csv_text(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Returns rows as CSV; lists are JSON, and a text that a spreadsheet would compute gets an apostrophe in front."""
    text = io.StringIO()
    if rows:
        columns = columns or list(rows[0])
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(_cell, columns))
        writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    return text.getvalue()


def json_text(rows: Iterable[Row], columns: Sequence[str] | None = None) -> str:
    """Returns rows as a JSON list of objects, one a line; what an entry has no value for is left out."""
    lines = []
    for row in rows:
        kept = {key: row[key] for key in columns or row if not isinstance(row[key], str) or row[key]}
        lines.append(json.dumps(kept, ensure_ascii=False, allow_nan=False))
    return "[" + ",\n ".join(lines) + "]\n"


def _sampled(params: Mapping[str, Any], parameters: Sequence[str]) -> Row:
    """Returns the searched keys' values; those of single layers as lists, in the layers' order."""
    layers: dict[str, dict[int, Any]] = defaultdict(dict)
    plain: Row = {}
    for name, value in params.items():
        key, bracket, index = name.partition("[")
        if bracket:
            layers[key][int(index.rstrip("]"))] = value
        else:
            plain[key] = value
    plain |= {key: [value for _, value in sorted(values.items())] for key, values in layers.items()}
    return {key: plain.get(key, "") for key in parameters}


def _shown(value: float | None, digits: int = 4) -> float | str:
    if value is None:
        return ""
    return round(value, digits) if math.isfinite(value) else str(value)


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        value = value.replace("\r\n", "\n").replace("\r", "\n")  # which the csv module leaves bare
        return f"'{value}" if value.startswith(_FORMULA) else value
    if isinstance(value, list) or value is None or isinstance(value, bool):
        return json.dumps(value)
    return value
