"""The trials as tables: the leaderboard, what failed and why, where the time went."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from cdn_tune.report.record import RunRecord
from cdn_tune.report.wording import duration, number, short_names
from cdn_tune.tuning.results.leaderboard import STATES
from cdn_tune.tuning.study.failures import MEANING
from cdn_tune.tuning.study.ranking import own, pareto_front, ranking, role_of, superseded, value_of

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_COSTS = ("parameters", "memory_gb", "latency_ms")


@dataclass(frozen=True)
class Cell:
    """A table cell: what it shows, and what it is sorted by."""

    text: str
    sort: float | str


@dataclass(frozen=True)
class Leaderboard:
    """Every entry of the study.

    Attributes:
        heads: (short name, full name, whether it holds numbers) per column.
        rows: (state, rank or None, cells) per entry, ranked ones first.
    """

    heads: list[tuple[str, str, bool]]
    rows: list[tuple[str, int | None, list[Cell]]]


def shown_state(trial: FrozenTrial) -> str:
    """Returns a trial's state, or for what was never trained its role: refused, copy or learned."""
    role = role_of(trial)
    return STATES[trial.state] if role == "trial" else role


def seconds_of(trial: FrozenTrial, now: float) -> float:
    """Returns how long a trial has occupied its place; over all segments if it was interrupted."""
    return sum(end - start for _, start, end in segments_of(trial, now))


def segments_of(trial: FrozenTrial, now: float) -> list[tuple[str, float, float]]:
    """Returns where and when a trial ran: (node, start, end) in epoch seconds; a running one ends now."""
    told = trial.user_attrs.get("segments")
    if told:
        return [(str(node), float(start), float(now if end is None else end)) for node, start, end in told]
    if trial.datetime_start is None:
        return []
    end = trial.datetime_complete.timestamp() if trial.datetime_complete else now
    start = trial.datetime_start.timestamp()
    return [("this run", start, max(start, end))]


def parameters_of(record: RunRecord) -> list[str]:
    """Returns the searched keys in the order of the search space, then those that only trials have."""
    keys = list(record.space.get("parameters", {}))
    sampled = dict.fromkeys(key for trial in record.trials for key in trial.params)
    return [key for key in keys if key in sampled] + [key for key in sampled if key not in keys]


def leaderboard(record: RunRecord) -> Leaderboard:
    """Returns the leaderboard: ranked trials, then running ones, then what was never trained, then failures."""
    ranked = ranking(record.trials)
    places = {trial.number: place for place, trial in enumerate(ranked, start=1)}
    waiting = [trial for trial in record.trials if trial.number not in places]
    waiting.sort(key=lambda trial: (trial.state == TrialState.FAIL, role_of(trial) != "trial", trial.number))
    parameters = parameters_of(record)
    metrics = list(dict.fromkeys(name for trial in record.trials for name in trial.user_attrs.get("val", {})))
    costs = [name for name in _COSTS if any(name in trial.user_attrs for trial in record.trials)]
    short = short_names(parameters)
    heads = [
        ("rank", "Rank by the best val metric", True),
        ("trial", "Number of the trial", True),
        ("state", "State of the trial", False),
        (f"val {record.metric}", f"Best val {record.metric}", True),
        ("best epoch", "Epoch of the best val metric", True),
        ("epochs", f"{record.attributes.get('unit', 'epoch')}s reported", True),
        ("time", "Seconds of training and evaluation", True),
        *((short[key], key, _is_numeric(key, record.trials)) for key in parameters),
        *((name, f"val {name} at the best epoch", True) for name in metrics if name != record.metric),
        *((name, name, True) for name in costs),
        ("reason", "Why it ended early or failed", False),
    ]
    rows = []
    for trial in [*ranked, *waiting]:
        note = trial.user_attrs
        rank = places.get(trial.number)
        cells = [
            _cell(rank),
            _cell(trial.number),
            _cell(shown_state(trial)),
            _cell(value_of(trial), record.metric),
            _cell(note.get("best_epoch")),
            _cell(note.get("epoch", max(trial.intermediate_values, default=0))),
            Cell(duration(note.get("seconds")), float(note.get("seconds") or 0)),
            *(_cell(trial.params.get(key)) for key in parameters),
            *(_cell(note.get("val", {}).get(name), name) for name in metrics if name != record.metric),
            *(_cell(note.get(name)) for name in costs),
            _cell(note.get("reason", "")),
        ]
        rows.append((shown_state(trial), rank, cells))
    return Leaderboard(heads, rows)


def failures(record: RunRecord) -> list[dict[str, Any]]:
    """Returns failures and other early ends, grouped by state and by reason up to the numbers in it, most first."""
    again = superseded(record.trials)
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for trial in record.trials:
        reason = str(trial.user_attrs.get("reason", "")).strip()
        state = shown_state(trial)
        if state not in ("failed", "pruned", "refused") or (not reason and state == "pruned"):
            continue
        kind = str(trial.user_attrs.get("failure", ""))
        key = (state, kind, _NUMBER.sub("#", reason))
        group = groups.setdefault(
            key,
            {
                "state": state,
                "kind": MEANING.get(kind, kind),
                "reason": reason or "no reason was recorded",
                "trials": [],
                "again": 0,
            },
        )
        group["trials"].append(trial.number)
        group["again"] += trial.number in again
    order = {"failed": 0, "refused": 1, "pruned": 2}
    return sorted(groups.values(), key=lambda group: (order[group["state"]], -len(group["trials"])))


def spending(record: RunRecord, now: float) -> list[dict[str, Any]]:
    """Returns per state: trials, their time, its share of the whole, and GPU-hours where trials occupy GPUs."""
    gpus = gpus_per_trial(record)
    found: dict[str, list[float]] = {}
    for trial in own(record.trials):
        found.setdefault(STATES[trial.state], []).append(seconds_of(trial, now))
    total = sum(map(sum, found.values())) or 1.0
    return [
        {
            "state": state,
            "trials": len(found[state]),
            "time": duration(sum(found[state])),
            "share": sum(found[state]) / total,
            "gpu_hours": f"{gpus * sum(found[state]) / 3600:.2f}" if gpus else "",
        }
        for state in STATES.values()
        if state in found
    ]


def gpus_per_trial(record: RunRecord) -> float:
    """Returns the GPUs that a trial occupies."""
    told = record.attributes.get("gpus_per_trial")
    if told is not None:
        return float(told)
    resources = record.space.get("resources") or {}
    return float(resources.get("gpus_per_worker", 0)) * float(resources.get("workers", 1))


def front(record: RunRecord) -> list[FrozenTrial]:
    """Returns the Pareto front of a search with several objectives; empty with one."""
    if len(record.directions) < 2:
        return []
    usable = [trial for trial in record.trials if trial.values is None or len(trial.values) == len(record.directions)]
    return pareto_front(usable, record.directions)


def counted(trials: Iterable[FrozenTrial]) -> dict[str, int]:
    """Returns how many entries there are in each state."""
    counts: dict[str, int] = {}
    for trial in trials:
        counts[shown_state(trial)] = counts.get(shown_state(trial), 0) + 1
    return counts


def unfinished(record: RunRecord) -> bool:
    """Returns whether some trial is recorded as running."""
    return any(trial.state == TrialState.RUNNING for trial in own(record.trials))


def _is_numeric(key: str, trials: Iterable[FrozenTrial]) -> bool:
    return all(
        isinstance(trial.params[key], int | float) and not isinstance(trial.params[key], bool)
        for trial in trials
        if key in trial.params
    )


def _cell(value: Any, metric: str = "") -> Cell:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(number(value, metric), float(value))
    return Cell(number(value, metric) if value != "" else "", "" if value is None else str(value))
