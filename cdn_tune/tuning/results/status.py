"""The status of a search, read from its run folder and its study, while it runs and after."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cdn_tune.data.mark import Mark, to_mark
from cdn_tune.training.object_store.lease import is_leased, is_locked
from cdn_tune.training.object_store.working_copy import place_of, shown, working_copy
from cdn_tune.training.runs.records import METRICS
from cdn_tune.tuning.layout import TRIALS, UNFIT, StopFile
from cdn_tune.tuning.results.leaderboard import ENDED, HOUR, PAUSED, TRIED, Row, filled, objective_column
from cdn_tune.tuning.results.record import Record, read_record
from cdn_tune.tuning.study.ranking import trained

State = Literal["running", "finished", "failed", "stopped"]


@dataclass(frozen=True)
class RunningTrial:
    """A trial that is on record as running."""

    trial: int
    value: float | None  # best val metric so far; None before its first epoch
    epoch: int  # last epoch that was reported
    epochs: int | None  # of the whole trial; None before its first report
    silent_seconds: float | None  # since its last report, or since it was started; None if unknown
    node: str
    parameters: dict[str, Any]  # sampled values by dotted key


@dataclass(frozen=True)
class Status:
    """A search as it stands; what is None is unknown, not on record or not yet to be computed."""

    run: str
    name: str  # of the search space
    metric: str  # that ranks
    parameters: list[str]  # dotted keys that are searched
    dataset: str  # name of the dataset
    families: list[str]  # names of the model families that are searched
    planted: Mark  # whether the data are planted
    is_alive: bool  # whether a process holds the run folder now
    stop_asked: bool  # whether a stop was requested
    asked: int | None  # trials in all
    ended: int  # trials that have ended; a failed one that was tried again does not count
    counts: dict[str, int]  # entries by state, also of those that are no trials: ``refused``, ``copy``, ``learned``
    best: Row | None  # the leaderboard's first row
    ahead: int | None  # the running or paused trial that is better already than every ended one; of one objective alone
    front: list[Row]  # rows of the Pareto front, if there are several objectives
    objectives: dict[str, str]  # name to ``maximize`` or ``minimize``
    running: list[RunningTrial]  # if no process is alive they wait to be taken up again
    elapsed_seconds: float | None  # of searching, over all starts
    trials_per_hour: float | None  # ended trials per hour of searching
    samples_per_second: float | None  # queries trained per second, over the running trials
    gpu_hours: float  # that all trials have occupied
    eta_seconds: float | None  # until the last trial ends; None also if no process is alive
    failures: dict[str, int]  # failed trials by kind of reason
    unfit_nodes: list[str]  # a line for each node that takes no trials; none if no process is alive
    notice: str | None = None  # as of the `Record`

    @property
    def is_finished(self) -> bool:
        """Whether its last trial has ended."""
        return not self.is_alive and self.asked is not None and self.ended >= self.asked and not self.running

    @property
    def state(self) -> State:
        """How it stands, in a word: ``failed`` if every trial has, ``stopped`` if it ended before its last trial."""
        if self.is_alive:
            return "running"
        if self.ended and self.counts.keys() <= {"failed", "refused", "copy", "learned"}:
            return "failed"
        return "finished" if self.is_finished else "stopped"

    def plain(self) -> dict[str, Any]:
        """Returns it as plain values, ready for JSON; rows without what they have no value for."""
        plain = asdict(self)
        plain["best"] = None if self.best is None else filled(self.best)
        plain["front"] = [filled(row) for row in self.front]
        return plain


def status_of(run: Path, storage: str | None = None) -> Status:
    """Returns how the search in a run folder stands, without writing to it or holding it.

    Args:
        run: The run folder.
        storage: As of `read_record`.

    Raises:
        RunError: If it is no search's run folder or its study cannot be read.
    """
    run = working_copy(run)
    alive = is_held(run)  # before the record is read: a search may end in between
    record = read_record(run, storage)
    rows = record.rows()
    asked, ended, elapsed = record.attributes.get("trials"), count_ended(rows), _elapsed(record)
    running = [row for row in rows if row["state"] == "running"]
    speeds = [row["samples_per_second"] for row in running if row["samples_per_second"] != ""]
    counts = Counter(row["state"] for row in rows)
    now = time.time()
    return Status(
        run=shown(run),
        name=record.space.name,
        metric=record.metric,
        parameters=list(record.space.parameters),
        dataset=record.base.data.dataset,
        families=record.families,
        planted=to_mark(record.attributes.get("planted")),
        is_alive=alive,
        stop_asked=StopFile(run).is_raised(),
        asked=asked,
        ended=ended,
        counts={state: counts[state] for state in (*TRIED, "refused", "copy", "learned") if counts[state]},
        best=next((row for row in rows if row["rank"] == 1), None),
        ahead=leading["trial"] if (leading := ahead(rows)) and len(record.objectives) == 1 else None,
        front=[row for row in rows if row.get("pareto") == 1],
        objectives={name: direction.name.lower() for name, direction in record.objectives.items()},
        running=[_running(row, record, now) for row in running],
        elapsed_seconds=elapsed,
        trials_per_hour=ended / elapsed * HOUR if elapsed and ended else None,
        samples_per_second=round(sum(speeds), 1) if speeds and alive else None,
        gpu_hours=gpu_hours(rows),
        eta_seconds=eta_seconds(rows, asked, max(len(running), 1)) if alive and asked is not None else None,
        failures=dict(Counter(row["failure"] or "unknown" for row in rows if row["state"] == "failed")),
        unfit_nodes=list(record.attributes.get(UNFIT, ())) if alive else [],
        notice=record.notice,
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
    those cost that lasted longer than it has so far, or, if none did, its epochs left at its own speed: early on the
    ended ones are mostly those that early stopping ended first.

    Args:
        rows: The leaderboard.
        asked: Trials in all.
        slots: Trials that run at once.
    """
    costs = [float(row["seconds"]) for row in rows if row["state"] in (*ENDED, PAUSED) and row["seconds"] != ""]
    if not costs or slots < 1:
        return None
    mean = sum(costs) / len(costs)
    running = [row for row in rows if row["state"] == "running"]
    left = [_left(row, costs, mean) for row in running]
    begun = len(running) + len([row for row in rows if row["state"] == PAUSED])
    to_come = max(asked - count_ended(rows) - begun, 0)
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


def ahead(rows: Sequence[Row]) -> Row | None:
    """Returns the best running or paused trial if its val metric so far is above that of every ended one."""
    running = [
        row
        for row in rows
        if row["state"] in ("running", PAUSED) and row["value"] != "" and row.get("confirms", "") == ""
    ]
    first = max(running, key=lambda row: row["value"], default=None)
    ended = next((row["value"] for row in rows if row["rank"] == 1), None)
    return first if first is not None and (ended is None or first["value"] > ended) else None


def best_per_objective(rows: Sequence[Row], objectives: dict[str, str]) -> dict[str, Row]:
    """Returns the row of the leaderboard's Pareto front that is best in each objective."""
    best: dict[str, Row] = {}
    for name, direction in objectives.items():
        column = objective_column(name)
        held = [row for row in rows if row.get("pareto") == 1 and row.get(column, "") != ""]
        if held:
            choose = max if direction == "maximize" else min
            best[name] = choose(held, key=lambda row: row[column])
    return best


def is_held(run: Path) -> bool:
    """Returns whether a process holds a run folder now, on this machine or, through its object store, on any."""
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
    trials = trained(record.entries)
    starts = [trial.datetime_start for trial in trials if trial.datetime_start is not None]
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete is not None]
    return (max(ends) - min(starts)).total_seconds() if starts and ends else None
