"""How a search stands: seen from its run folder and its study, while it runs and after."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdn_tune.training.object_store.lease import is_leased, is_locked
from cdn_tune.training.object_store.working_copy import place_of, shown, working_copy
from cdn_tune.training.runs.records import METRICS
from cdn_tune.tuning.layout import TRIALS, UNFIT
from cdn_tune.tuning.results.leaderboard import ENDED, HOUR, TRIED, Row, objective_column
from cdn_tune.tuning.results.record import Record, read_record
from cdn_tune.tuning.stop_file import is_asked
from cdn_tune.tuning.study.ranking import own


@dataclass(frozen=True)
class RunningTrial:
    """A trial that is on record as running.

    Attributes:
        trial: Its number.
        value: Best val metric so far; None before its first epoch.
        epoch: Last epoch that was reported.
        epochs: Epochs of the whole trial; None before its first report.
        silent_seconds: Seconds since its last report, or since it was started; None if unknown.
        node: Where it runs.
        parameters: Sampled values by dotted key.
    """

    trial: int
    value: float | None
    epoch: int
    epochs: int | None
    silent_seconds: float | None
    node: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Status:
    """A search as it stands.

    Attributes:
        run: The run folder.
        name: Of the search space.
        metric: Name of the val metric that ranks.
        parameters: Dotted keys that are searched.
        planted: Whether the data are planted.
        is_alive: Whether a process holds the run folder now.
        stop_asked: Whether it was asked to stop.
        asked: Trials asked for; None if it is not on record.
        ended: Trials that have ended; a failed one that was tried again does not count.
        counts: Entries by state, also of those that are no trials: ``refused``, ``copy``, ``learned``.
        best: The leaderboard's first row, with its parameters; None before the first ranked trial.
        front: Rows of the Pareto front, if there are several objectives.
        objectives: Their names and whether each is ``maximize`` or ``minimize``.
        running: Trials on record as running; if no process is alive they wait to be taken up again.
        elapsed_seconds: Of searching, over all starts; None if it is not on record.
        trials_per_hour: Ended trials per hour of searching; None before the first.
        samples_per_second: Queries trained per second, over the running trials; None if none reports.
        gpu_hours: That all trials have occupied.
        eta_seconds: Until the last trial ends; None while unknown, or if no process is alive.
        failures: How many trials failed for which kind of reason.
        unfit_nodes: A line for each node that takes no trials, as the driver last saw it; none if it is not alive.
    """

    run: str
    name: str
    metric: str
    parameters: list[str]
    planted: bool
    is_alive: bool
    stop_asked: bool
    asked: int | None
    ended: int
    counts: dict[str, int]
    best: Row | None
    front: list[Row]
    objectives: dict[str, str]
    running: list[RunningTrial]
    elapsed_seconds: float | None
    trials_per_hour: float | None
    samples_per_second: float | None
    gpu_hours: float
    eta_seconds: float | None
    failures: dict[str, int]
    unfit_nodes: list[str]

    def plain(self) -> dict[str, Any]:
        """Returns it as plain values, ready for JSON; rows without what they have no value for."""
        plain = asdict(self)
        plain["best"] = None if self.best is None else _kept(self.best)
        plain["front"] = [_kept(row) for row in self.front]
        return plain


def status_of(run: Path, storage: str | None = None) -> Status:
    """Returns how the search in a run folder stands, without writing to it or holding it.

    Args:
        run: The run folder.
        storage: Where the study lies, if its URL needs what the manifest does not tell.

    Raises:
        RunError: If it is no search's run folder or its study cannot be read.
    """
    run = working_copy(run)
    alive = is_held(run)  # before the record is read: a search that ends in between is then no riddle
    record = read_record(run, storage)
    rows = record.rows()
    asked = record.attributes.get("trials")
    ended = count_ended(rows)
    elapsed = _elapsed(record)
    now = time.time()
    running = [_running(row, record, now) for row in rows if row["state"] == "running"]
    speeds = [
        row["samples_per_second"] for row in rows if row["state"] == "running" and row["samples_per_second"] != ""
    ]
    counts = Counter(row["state"] for row in rows)
    eta = eta_seconds(rows, asked, max(len(running), 1)) if alive and asked is not None else None
    return Status(
        run=shown(run),
        name=record.space.name,
        metric=record.metric,
        parameters=list(record.space.parameters),
        planted=bool(record.attributes.get("planted", False)),
        is_alive=alive,
        stop_asked=is_asked(run),
        asked=asked,
        ended=ended,
        counts={state: counts[state] for state in (*TRIED, "refused", "copy", "learned") if counts[state]},
        best=next((row for row in rows if row["rank"] == 1), None),
        front=[row for row in rows if row.get("pareto") == 1],
        objectives={name: direction.name.lower() for name, direction in record.objectives.items()},
        running=running,
        elapsed_seconds=elapsed,
        trials_per_hour=ended / elapsed * HOUR if elapsed and ended else None,
        samples_per_second=round(sum(speeds), 1) if speeds and alive else None,
        gpu_hours=gpu_hours(rows),
        eta_seconds=eta,
        failures=dict(Counter(row["failure"] or "unknown" for row in rows if row["state"] == "failed")),
        unfit_nodes=list(record.attributes.get(UNFIT, ())) if alive else [],
    )


def count_ended(rows: Sequence[Row]) -> int:
    """Returns how many trials have ended; one that was tried again counts once."""
    return sum(row["state"] in ENDED and row["tried_again"] == "" for row in rows)


def gpu_hours(rows: Sequence[Row]) -> float:
    """Returns the GPU-hours that all trials of a leaderboard have occupied."""
    return round(sum(float(row["gpu_hours"]) for row in rows if row["state"] in TRIED and row["gpu_hours"] != ""), 5)


def eta_seconds(rows: Sequence[Row], asked: int, slots: int) -> float | None:
    """Returns the seconds until a search's last trial ends; None while no trial has ended.

    A trial still to come is expected to cost what ended ones did on average. One that runs is expected to cost what
    those cost that lasted longer than it has so far, or, if none did, what its own speed tells for the epochs it has
    left: early on the ended ones are mostly those that early stopping ended first.

    Args:
        rows: The leaderboard.
        asked: Trials in all.
        slots: Trials that run at once.
    """
    costs = [float(row["seconds"]) for row in rows if row["state"] in ENDED and row["seconds"] != ""]
    if not costs or slots < 1:
        return None
    mean = sum(costs) / len(costs)
    running = [row for row in rows if row["state"] == "running"]
    left = [_left(row, costs, mean) for row in running]
    to_come = max(asked - count_ended(rows) - len(running), 0)
    # The work is shared by all slots, but no trial by two.
    return max((to_come * mean + sum(left)) / slots, *left, mean if to_come else 0.0, 0.0)


def _left(row: Row, costs: Sequence[float], mean: float) -> float:
    spent = float(row["seconds"] or 0.0)
    longer = [cost for cost in costs if cost > spent]
    if longer:
        return sum(longer) / len(longer) - spent
    if not row["epochs"] or row["of_epochs"] == "":
        return mean
    return float(spent / row["epochs"] * max(row["of_epochs"] - row["epochs"], 0))


def best_per_objective(rows: Sequence[Row], objectives: dict[str, str]) -> dict[str, Row]:
    """Returns the row of the front that is best in each objective.

    Args:
        rows: The leaderboard; only rows marked as of the front are looked at.
        objectives: Names, and ``maximize`` or ``minimize``.
    """
    best: dict[str, Row] = {}
    for name, direction in objectives.items():
        column = objective_column(name)
        held = [row for row in rows if row.get("pareto") == 1 and row.get(column, "") != ""]
        if held:
            choose = max if direction == "maximize" else min
            best[name] = choose(held, key=lambda row: row[column])
    return best


def is_held(run: Path) -> bool:
    """Returns whether a process holds a run folder now, on this machine or, through its home, on any."""
    place = place_of(run)
    return is_locked(run) or (place is not None and is_leased(place.store))


def _running(row: Row, record: Record, now: float) -> RunningTrial:
    trial = record.entry(row["trial"])
    reports = [end for _, _, end in trial.user_attrs.get("segments", ()) if end is not None]
    if trial.datetime_start is not None:
        reports.append(trial.datetime_start.timestamp())
    with contextlib.suppress(OSError):  # the trial's own file, written at every epoch; on a shared file system
        reports.append((record.run / TRIALS / f"{trial.number:04d}" / METRICS).stat().st_mtime)
    return RunningTrial(
        trial=trial.number,
        value=None if row["value"] == "" else row["value"],
        epoch=row["epochs"],
        epochs=None if row["of_epochs"] == "" else row["of_epochs"],
        silent_seconds=round(max(now - max(reports), 0.0), 1) if reports else None,
        node=row["node"].rpartition(" ")[2],
        parameters={key: row[key] for key in record.space.parameters if row[key] != ""},
    )


def _elapsed(record: Record) -> float | None:
    """Returns the seconds of searching as recorded, else from the first trial's start to the last one's end."""
    searched = record.attributes.get("searched_seconds")
    if isinstance(searched, int | float) and math.isfinite(searched):
        return float(searched)
    trials = own(record.entries)
    starts = [trial.datetime_start for trial in trials if trial.datetime_start is not None]
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete is not None]
    return (max(ends) - min(starts)).total_seconds() if starts and ends else None


def _kept(row: Row) -> Row:
    return {key: value for key, value in row.items() if not isinstance(value, str) or value}
