"""The leaderboard: every entry of the study with its state, values, parameters and cost, ranked.

`COLUMNS` is the one list of columns: of leaderboard.csv and leaderboard.json, the terminal's tables, the report's page.
"""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config.space import MEASURED_COSTS
from cdn_tune.training.runs.files import write_text
from cdn_tune.tuning.study.ranking import (
    CONFIRMATION,
    CONFIRMS,
    SEED,
    Confirmed,
    confirmed,
    is_paused,
    pareto_front,
    ranking,
    role_of,
    superseded,
    value_of,
)

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
UNFINISHED = "unfinished"  # how a running trial is shown once no process runs it; see `at_rest`
PAUSED = "paused"  # how a running trial is shown that waits at a rung
TRIED = frozenset({*STATES.values(), PAUSED, UNFINISHED})  # states of trials; other entries have their role as state
ENDED = ("complete", "pruned", "failed")
_ORDER = ("running", PAUSED, "waiting", "failed", "learned", "copy", "refused")
_FORMULA = ("=", "+", "-", "@", "\t", "\n")  # what a spreadsheet would compute

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """What the columns of a search's leaderboard depend on."""

    parameters: Sequence[str]  # dotted keys that are searched
    metrics: Sequence[str]  # names of the val metrics
    metric: str = ""  # the one that ranks
    several: bool = False  # whether there are several objectives


class Entry:
    """An entry of the study among all others, from which the columns' values follow.

    `note` holds its attributes, `place` its rank or an empty text, `gpus` the GPUs that a trial occupies, `sampled` its
    values by dotted key, those of single layers as a list in the layers' order; `tried_again` is True if it failed and
    was tried again as another trial; `found` is what its confirmations have found, if it has any.
    """

    def __init__(
        self,
        trial: FrozenTrial,
        place: int | str,
        on_front: bool,
        tried_again: bool,
        gpus: float,
        found: Confirmed | None = None,
    ) -> None:
        self.trial, self.note = trial, trial.user_attrs
        self.place, self.on_front, self.tried_again, self.gpus = place, on_front, tried_again, gpus
        self.found = found
        self.sampled = _sampled(trial.params)

    def rounded(self, name: str, digits: int) -> float | str:
        """Returns an attribute that is a number."""
        return shown(self.note.get(name), digits)


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard: in the CSV and JSON files, and in filters, always."""

    key: str  # its name there; ``{}`` stands for each of `names`
    title: str  # its head in the terminal and on the report's page
    meaning: str  # what it holds
    value: Callable[[Entry, str], Any]  # from an entry, and one of `names`; an empty text if there is no value
    names: Callable[[Shape], Sequence[str]] = lambda _: ("",)  # makes one column for each; by default one
    form: Literal["plain", "text", "share", "seconds", "epochs", "mark"] = "plain"  # how the value is shown
    # Whether the terminal shows it: if any row has a value, where it is wide enough.
    terminal: Literal["always", "filled", "wide", "never"] = "never"
    page: Literal["always", "filled", "never"] = "never"  # whether the report's page does: if any entry has a value

    def named(self, name: str) -> "Column":
        """Returns the column for one of its names."""
        key, title, meaning = (text.replace("{}", name) for text in (self.key, self.title, self.meaning))
        return replace(self, key=key, title=title, meaning=meaning, value=lambda entry, _: self.value(entry, name))


_EVERYWHERE: dict[str, Any] = {"terminal": "always", "page": "always"}


def _noted(name: str, meaning: str = "", digits: int | None = None, **settings: Any) -> Column:
    """A column of an attribute, rounded if it is a number."""

    def value(entry: Entry, _: str) -> Any:
        return entry.note.get(name, "") if digits is None else entry.rounded(name, digits)

    return Column(name, name, meaning or name, value, **settings)


def _mean(entry: Entry, _: str = "") -> float | str:
    return "" if entry.found is None else shown(entry.found.mean)


def _interval(entry: Entry, end: int) -> float | str:
    return "" if entry.found is None or entry.found.interval is None else shown(entry.found.interval[end])


_CONFIRMED: dict[str, Any] = {"form": "share", "terminal": "filled", "page": "filled"}

COLUMNS = [
    Column(
        "rank", "rank", "Rank by the mean over confirmations, then by the best val metric",
        lambda entry, _: entry.place, **_EVERYWHERE,
    ),
    Column(
        "pareto", "front", "On the Pareto front", lambda entry, _: 1 if entry.on_front else "",
        names=lambda shape: ("",) if shape.several else (), form="mark", terminal="always",
    ),
    Column("trial", "trial", "Number of the trial", lambda entry, _: entry.trial.number, **_EVERYWHERE),
    Column("state", "state", "State of the trial", lambda entry, _: state_of(entry.trial), form="text", **_EVERYWHERE),
    Column(
        "value", "val {}", "Best val {}", lambda entry, _: shown(value_of(entry.trial)),
        names=lambda shape: (shape.metric,), form="share", **_EVERYWHERE,
    ),
    Column(
        "mean", "mean", "Mean of val {} over its confirmations", _mean,
        names=lambda shape: (shape.metric,), **_CONFIRMED,
    ),
    Column(
        "mean_low", "from", "Lower end of the mean's 95 % interval", lambda entry, _: _interval(entry, 0), **_CONFIRMED
    ),
    Column(
        "mean_high", "to", "Upper end of the mean's 95 % interval", lambda entry, _: _interval(entry, 1), **_CONFIRMED
    ),
    Column(
        "seeds", "seeds", "Confirmations that are complete",
        lambda entry, _: "" if entry.found is None else len(entry.found.runs),
        terminal="filled", page="filled",
    ),
    _noted(CONFIRMS, "The trial that it confirms", terminal="filled", page="filled"),
    _noted(SEED, "The seed under which it confirms that", page="filled"),
    Column(
        "best_epoch", "best epoch", "Epoch of the best val metric", lambda entry, _: entry.note.get("best_epoch", ""),
        page="always",
    ),
    Column(
        "epochs", "epochs", "Epochs reported",
        lambda entry, _: entry.note.get("epoch", max(entry.trial.intermediate_values, default=0)),
        form="epochs", **_EVERYWHERE,
    ),
    Column("of_epochs", "of", "Epochs in all", lambda entry, _: entry.note.get("epochs", "")),
    Column(
        "seconds", "time", "Seconds of training and evaluation", lambda entry, _: entry.rounded("seconds", 1),
        form="seconds", **_EVERYWHERE,
    ),
    Column(
        "gpu_hours", "GPU-hours", "GPU-hours occupied",
        lambda entry, _: shown(occupied_seconds(entry.note) * entry.gpus / HOUR, 5),
    ),
    Column(
        "{}", "{}", "{}", lambda entry, key: entry.sampled.get(key, ""),
        names=lambda shape: shape.parameters, terminal="wide", page="filled",
    ),
    Column(
        "val {}", "val {}", "val {} at the best epoch", lambda entry, name: shown(entry.note.get("val", {}).get(name)),
        names=lambda shape: shape.metrics, form="share", page="filled",
    ),
    _noted("parameters", page="filled"),
    _noted("memory_gb", digits=3, page="filled"),
    _noted("latency_ms", digits=3, page="filled"),
    _noted("loss", digits=5),
    _noted("samples_per_second", digits=1),
    Column("node", "node", "Where it ran", lambda entry, _: _nodes(entry.note), form="text"),
    _noted("retry_of", "The failed trial that it is another attempt at"),
    _noted("copy_of", "The trial that it is equal to"),
    _noted("learned_from", "The run that it is a result of", form="text"),
    Column("tried_again", "tried again", "Failed, and tried again", lambda entry, _: 1 if entry.tried_again else ""),
    _noted("failure", "Kind of failure", form="text"),
    _noted("reason", "Why it ended early or failed", form="text", page="always"),
]  # fmt: skip


def columns_of(shape: Shape) -> list[Column]:
    """Returns the columns of a search's leaderboard, in order."""
    return [column.named(name) for column in COLUMNS for name in column.names(shape)]


def leaderboard(
    trials: Sequence[FrozenTrial],
    parameters: Sequence[str],
    metrics: Sequence[str],
    *,
    directions: Sequence[StudyDirection] = (),
    gpus: float = 0.0,
) -> list[Row]:
    """Returns one row per entry: ranked trials, complete confirmations, running, paused, failed, what is no trial.

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
    again, found = superseded(trials), confirmed(trials)
    columns = columns_of(Shape(parameters, metrics, several=several))
    entries = (
        Entry(
            trial,
            places.get(trial.number, ""),
            trial.number in front,
            trial.number in again,
            gpus,
            found.get(trial.number),
        )
        for trial in (*ranked, *others)
    )
    return [{column.key: column.value(entry, "") for column in columns} for entry in entries]


def state_of(trial: FrozenTrial) -> str:
    """Returns the state of a trial in words; of an entry that is no trial, its role."""
    role = role_of(trial)
    if role not in ("trial", CONFIRMATION):
        return role
    return PAUSED if is_paused(trial) else STATES[trial.state]


def at_rest(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of a search that no process runs, for display: trials on record as running are unfinished."""
    return [row | {"state": UNFINISHED} if row["state"] == "running" else row for row in rows]


def occupied_seconds(note: Mapping[str, Any], now: float | None = None) -> float:
    """Returns how long a trial has occupied its resources: its segments, or at least its training and evaluation.

    Args:
        note: The trial's attributes.
        now: Seconds since 1970 at which open segments end; they do not count if None.
    """
    covered, until = 0.0, -math.inf
    for _, start, end in sorted(note.get("segments", ()), key=lambda segment: float(segment[1])):
        end = now if end is None else end
        if end is not None and end > until:  # workers of a group run side by side
            covered += end - max(start, until)
            until = end
    return max(covered, float(note.get("seconds") or 0.0))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Returns each dotted key's last part, or the whole key where two end alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


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
    held = (filled(row if columns is None else {key: row[key] for key in columns}) for row in rows)
    return "[" + ",\n ".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in held) + "]\n"


def filled(row: Row) -> Row:
    """Returns a row without the columns in which it has no value."""
    return {key: value for key, value in row.items() if not isinstance(value, str) or value}


def _nodes(note: Mapping[str, Any]) -> str:
    return " ".join(dict.fromkeys(str(node) for node, *_ in note.get("segments", ())))


def shown(value: float | None, digits: int = 4) -> float | str:
    """Returns a number as the files hold it: rounded; what is not finite as a text, nothing as an empty one."""
    if value is None:
        return ""
    return round(value, digits) if math.isfinite(value) else str(value)


def _sampled(params: Mapping[str, Any]) -> Row:
    layers: dict[str, dict[int, Any]] = defaultdict(dict)
    plain: Row = {}
    for name, value in params.items():
        key, bracket, index = name.partition("[")
        if bracket:
            layers[key][int(index.rstrip("]"))] = value
        else:
            plain[key] = value
    return plain | {key: [value for _, value in sorted(values.items())] for key, values in layers.items()}


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        value = value.replace("\r\n", "\n").replace("\r", "\n")  # which the csv module leaves bare
        return f"'{value}" if value.startswith(_FORMULA) else value
    if isinstance(value, list) or value is None or isinstance(value, bool):
        return json.dumps(value)
    return value
