"""The trials as tables: the leaderboard, what failed and why, where the time went."""

import re
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial

from cdn_tune.report.figures import duration, number
from cdn_tune.report.record import RunRecord
from cdn_tune.tuning.results.leaderboard import (
    PAUSED,
    STATES,
    Column,
    Shape,
    columns_of,
    occupied_seconds,
    short_names,
    state_of,
)
from cdn_tune.tuning.study.failures import MEANING
from cdn_tune.tuning.study.ranking import CONFIRMATION, pareto_front, role_of, superseded, trained

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class Cell(NamedTuple):
    """A table cell: what it shows, and what it is sorted by."""

    text: str
    sort: float | str


class Leaderboard(NamedTuple):
    """Every entry of the study."""

    heads: list[tuple[str, str, bool]]  # (short name, full name, whether it holds numbers) per column
    rows: list[tuple[str, int | None, list[Cell]]]  # (state, rank or None, cells) per entry, ranked ones first


def seconds_of(trial: FrozenTrial, now: float) -> float:
    """Returns how long a trial has occupied its place, as GPU-hours are counted; a running one until now."""
    return occupied_seconds({**trial.user_attrs, "segments": segments_of(trial, now)}, now)


def segments_of(trial: FrozenTrial, now: float) -> list[tuple[str, float, float]]:
    """Returns where and when a trial ran: (node, start, end) in epoch seconds; a running one ends now."""
    if recorded := trial.user_attrs.get("segments"):
        return [(str(node), float(start), float(now if end is None else end)) for node, start, end in recorded]
    if trial.datetime_start is None:
        return []
    end = trial.datetime_complete.timestamp() if trial.datetime_complete else now
    start = trial.datetime_start.timestamp()
    return [("this run", start, max(start, end))]


def parameters_of(record: RunRecord) -> list[str]:
    """Returns the searched keys in the order of the search space, then those that only trials have."""
    keys = list(record.search.space.parameters) if record.search else []
    sampled = dict.fromkeys(key for trial in record.trials for key in trial.params)
    return [key for key in keys if key in sampled] + [key for key in sampled if key not in keys]


def leaderboard(record: RunRecord) -> Leaderboard:
    """Returns the leaderboard, in the order of leaderboard.csv."""
    search = record.search
    if search is None:
        return Leaderboard([], [])
    rows = search.rows()
    parameters = parameters_of(record)
    short = short_names(parameters)
    columns = [
        column
        for column in columns_of(Shape(list(search.space.parameters), search.base.eval.metrics, search.metric))
        if column.page == "always" or (column.page == "filled" and any(row[column.key] != "" for row in rows))
        if column.key != f"val {search.metric}"  # the value
    ]
    heads = []
    for column in columns:
        is_number = column.form != "text" and all(_is_number(row[column.key]) or row[column.key] == "" for row in rows)
        heads.append((short.get(column.title, column.title), column.meaning, is_number))
    return Leaderboard(
        heads, [(row["state"], row["rank"] or None, [_cell(row[each.key], each) for each in columns]) for row in rows]
    )


def failures(record: RunRecord) -> list[dict[str, Any]]:
    """Returns failures and other early ends, grouped by state and by reason up to the numbers in it, most first."""
    again = superseded(record.trials)
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for trial in record.trials:
        reason = str(trial.user_attrs.get("reason", "")).strip()
        state = state_of(trial)
        if state not in ("failed", "pruned", "refused") or (not reason and state == "pruned"):
            continue
        kind = str(trial.user_attrs.get("failure", ""))
        new = {"state": state, "kind": MEANING.get(kind, kind), "reason": reason or "no reason was recorded"}
        key = (state, kind, _NUMBER.sub("#", reason))
        group = groups.setdefault(key, {**new, "trials": [], "again": 0})
        group["trials"].append(trial.number)
        group["again"] += trial.number in again
    order = {"failed": 0, "refused": 1, "pruned": 2}
    return sorted(groups.values(), key=lambda group: (order[group["state"]], -len(group["trials"])))


def spending(record: RunRecord, now: float) -> list[dict[str, Any]]:
    """Returns per state, and of confirmations: their number, time, share of it, and GPU-hours where there are GPUs."""
    gpus = gpus_per_trial(record)
    found: dict[str, list[float]] = {}
    for trial in trained(record.trials):
        kind = CONFIRMATION if role_of(trial) == CONFIRMATION else state_of(trial)
        found.setdefault(kind, []).append(seconds_of(trial, now))
    total = sum(map(sum, found.values())) or 1.0
    return [
        {
            "state": state,
            "trials": len(found[state]),
            "time": duration(sum(found[state])),
            "share": sum(found[state]) / total,
            "gpu_hours": f"{gpus * sum(found[state]) / 3600:.2f}" if gpus else "",
        }
        for state in (*STATES.values(), PAUSED, CONFIRMATION)
        if state in found
    ]


def gpus_per_trial(record: RunRecord) -> float:
    """Returns the GPUs that a trial occupies."""
    return record.search.gpus if record.search else 0.0


def front(record: RunRecord) -> list[FrozenTrial]:
    """Returns the Pareto front of a search with several objectives; empty with one."""
    directions = list(record.objectives.values())
    if len(directions) < 2:
        return []
    usable = [trial for trial in record.trials if trial.values is None or len(trial.values) == len(directions)]
    return pareto_front(usable, directions)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any, column: Column) -> Cell:
    if value == "":
        return Cell("" if column.form == "text" else number(None), "")
    if column.form == "seconds":
        return Cell(duration(value), value)
    text = (
        ", ".join(map(number, value)) if isinstance(value, list) else number(value, is_percent=column.form == "share")
    )
    return Cell(text, float(value) if _is_number(value) else str(value))
