"""Recorded learning curves: a table in one file, or what a finished search has left in its run folder.

A table is a file of JSON lines, compressed by gzip if its name ends so: first a `Header`, then a `Recorded` a line, one
for each configuration and seed. It may be a stranger's: its size, its values and their number are checked.
"""

import gzip
import io
import json
import math
import statistics
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from optuna.trial import FrozenTrial, TrialState
from pydantic import Field

from cdn_tune.config import Parameter, build
from cdn_tune.config.keys import Frozen
from cdn_tune.config.parameters import Choice
from cdn_tune.data.files import parse_json, written_whole
from cdn_tune.data.mark import Mark, to_mark
from cdn_tune.errors import ConfigError, RunError
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.training.runs.run_folder import MANIFEST
from cdn_tune.tuning.layout import trial_folder
from cdn_tune.tuning.results.record import Record, read_record
from cdn_tune.tuning.study.ranking import VALUED, own

FORMAT: Literal["cdn-tune curves"] = "cdn-tune curves"
LARGEST = 64 << 20  # bytes of a table, decompressed
MOST = 20_000  # curves in it
LEAST = 2  # complete trials of a run from which curves are predicted
_LONGEST = 10_000  # epochs of a curve
_PAUSE_SECONDS = 60.0  # that a slot stands empty at most; for longer the search was stopped

Metric = Annotated[str, Field(max_length=100)]
Share = Annotated[float, Field(ge=0, le=1, strict=False)]  # JSON writes 1.0 as 1
Loss = Annotated[float, Field(ge=-1e12, le=1e12, strict=False)]
Seconds = Annotated[float, Field(ge=0, le=1e9, strict=False)]
Metrics = Annotated[
    dict[Metric, Annotated[tuple[Share, ...], Field(strict=False, max_length=_LONGEST)]], Field(max_length=100)
]


class Header(Frozen):
    """The first line of a table."""

    format: Literal["cdn-tune curves"] = FORMAT
    version: Literal[1] = 1
    about: Annotated[str, Field(max_length=2000)] = Field(description="what was recorded, and by which command")
    planted: Mark = Field(description="whether the data were planted")
    metric: Metric = Field(description="the val metric by which the recorded trainings chose their best epoch")
    epochs: Annotated[int, Field(ge=1, le=_LONGEST)] = Field(description="of every curve")
    parameters: Annotated[dict[str, Parameter], Field(min_length=1, max_length=200)] = Field(description="what varied")


class Recorded(Frozen):
    """A learning curve: of one configuration under one seed, a value an epoch."""

    parameters: Annotated[dict[str, Choice], Field(max_length=1000)] = Field(description="values by Optuna's names")
    seed: Annotated[int, Field(ge=0)]
    val: Metrics = Field(description="by name")
    test: Metrics = Field(description="by name; empty if test was not opened")
    loss: Annotated[tuple[Loss, ...], Field(strict=False, max_length=_LONGEST)] = Field(description="of training")
    seconds: Annotated[tuple[Seconds, ...], Field(strict=False, max_length=_LONGEST)] = Field(
        description="of training and evaluation on val, from the first epoch on"
    )
    steps: Annotated[int, Field(ge=1, le=10**9)] = Field(description="optimiser steps of an epoch")
    start_seconds: Seconds = Field(description="from the trial's assignment to its first step")
    evaluation_seconds: Seconds = Field(description="of one evaluation on val")


@dataclass(frozen=True)
class Curves:
    """Recorded learning curves, all of `epochs` epochs.

    Attributes:
        source: Where they come from, for messages.
        is_run: Whether from a search, of which test is not known and stopped trials' ends are guessed.
        header: What they have in common.
        records: The curves.
        ended: Epochs after which each curve is guessed; its length if it was recorded whole.
    """

    source: str
    is_run: bool
    header: Header
    records: Sequence[Recorded]
    ended: Sequence[int]

    @property
    def metrics(self) -> list[str]:
        """Names of the val metrics that every curve has."""
        return sorted(set.intersection(*(set(record.val) for record in self.records)))

    @property
    def start_seconds(self) -> float:
        """Median start-up time."""
        return statistics.median(record.start_seconds for record in self.records)


def read_curves(source: Path) -> Curves:
    """Reads a table of curves, or the curves of a finished search from its run folder.

    Raises:
        ConfigError: If there is neither, or the table is damaged; names the line.
        RunError: If the folder holds no search, or too few complete trials.
    """
    return curves_of(read_record(source)) if (source / MANIFEST).exists() else read_table(source)


def read_table(path: Path) -> Curves:
    """Reads a table of recorded curves.

    Raises:
        ConfigError: If it does not exist or is no table; names the line and what is wrong.
    """
    lines = _lines(path)
    if not lines:
        raise ConfigError(f"{path}: is empty; name a table of recorded curves")
    header = build(Header, _mapping(path, 1, lines[0]), f"{path}:1")
    records = [
        _checked(build(Recorded, _mapping(path, number, line), f"{path}:{number}"), header, f"{path}:{number}")
        for number, line in enumerate(lines[1:], start=2)
    ]
    if not records:
        raise ConfigError(f"{path}: holds no curve; record some: python -m benchmarks.curves record")
    return Curves(str(path), False, header, records, [header.epochs] * len(records))


def write_table(path: Path, header: Header, records: Iterable[Recorded]) -> None:
    """Writes a table whole, compressed; the same curves make the same bytes."""
    text = "".join(f"{line_of(each)}\n" for each in (header, *records))
    with written_whole(path) as partial:
        partial.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def line_of(part: Frozen) -> str:
    """Returns the line of a table for a header or a curve, without its end."""
    return json.dumps(part.plain(), sort_keys=True, separators=(",", ":"))


def curves_of(record: Record) -> Curves:
    """Returns the learning curves of a search's trials.

    A trial that was stopped early goes on as the complete one does whose value was nearest to its own when it was
    stopped. Epochs after which val was not evaluated have the values of the one before.

    Raises:
        RunError: If the record has fewer than `LEAST` complete trials with their metrics.
    """
    ended = [trial for trial in own(record.entries) if trial.state in VALUED]
    empty = _empty_seconds(ended)
    found = [
        (trial, recorded)
        for trial in ended
        if (recorded := _of_trial(record, trial, empty.get(trial.number, 0.0))) is not None
    ]
    whole = [recorded for trial, recorded in found if trial.state == TrialState.COMPLETE]
    if len(whole) < LEAST:
        raise RunError(
            f"{record.run}: {len(whole)} complete trials have metrics, and curves are predicted from {LEAST} or more; "
            "let the search run on, or name a table with --curves"
        )
    metric, epochs = record.metric, max(len(each.loss) for each in whole)
    whole = [_whole(each, epochs) for each in whole]
    header = Header(
        about=f"the search {record.space.name} in {record.run}",
        planted=to_mark(record.attributes.get("planted")),
        metric=metric,
        epochs=epochs,
        parameters=record.space.parameters,
    )

    def nearest(curve: Recorded) -> Recorded:
        last = len(curve.loss) - 1
        return min(whole, key=lambda other: abs(other.val[metric][last] - curve.val[metric][last]))

    records = [
        _whole(each, epochs, None if trial.state == TrialState.COMPLETE else nearest(each)) for trial, each in found
    ]
    return Curves(str(record.run), True, header, records, [len(each.loss) for _, each in found])


def _empty_seconds(trials: Sequence[FrozenTrial]) -> dict[int, float]:
    """Returns how long the slot of each trial stood empty before it was proposed, by number."""
    found: dict[int, float] = {}
    free: list[float] = []  # when slots became so
    for trial in trials:
        begins = math.inf if trial.datetime_start is None else trial.datetime_start.timestamp()
        since = max((end for end in free if end <= begins), default=None)
        if since is not None and begins - since <= _PAUSE_SECONDS:
            free.remove(since)
            found[trial.number] = begins - since
        free += [] if trial.datetime_complete is None else [trial.datetime_complete.timestamp()]
    return found


def _of_trial(record: Record, trial: FrozenTrial, empty: float) -> Recorded | None:
    """Returns the epochs that a trial has reported to the study, from its folder.

    Its start-up is counted from when its slot became free, `empty` seconds before it was proposed.
    """
    rows = read_metrics(trial_folder(record.run, trial.number))[: trial.user_attrs.get("epoch", 0)]
    if not rows or not rows[0]["val"]:
        return None
    val: dict[str, list[float]] = {name: [] for name in rows[0]["val"]}
    for row in rows:
        for name, values in val.items():
            values.append(row["val"].get(name, values[-1] if values else math.nan))
    seconds = [row["train_seconds"] + row["val_seconds"] for row in rows]
    start = empty
    taken_up_again = len(trial.user_attrs.get("segments", ())) > 1
    if not taken_up_again and trial.datetime_start is not None and trial.datetime_complete is not None:
        start += max(0.0, (trial.datetime_complete - trial.datetime_start).total_seconds() - sum(seconds))
    plain = {
        "parameters": trial.params,
        "seed": trial.number,
        "val": val,
        "test": {},
        "loss": [row["loss"] for row in rows],
        "seconds": [sum(seconds[: end + 1]) for end in range(len(seconds))],
        "steps": max(1, round(rows[-1]["steps"] / len(rows))),
        "start_seconds": start,
        "evaluation_seconds": statistics.median(row["val_seconds"] for row in rows),
    }
    return build(Recorded, plain, f"{record.run}: trial {trial.number}")


def _whole(curve: Recorded, epochs: int, like: Recorded | None = None) -> Recorded:
    """Returns a curve lengthened to so many epochs: with another one's changes, or at its last values if None.

    Further epochs take as long as the mean of the others.
    """
    done = len(curve.loss)

    def longer(values: Sequence[float], model: Sequence[float] | None) -> tuple[float, ...]:
        changes = [0.0] * (epochs - done) if model is None else [each - model[done - 1] for each in model[done:]]
        return (*values, *(values[-1] + change for change in changes))

    model = {} if like is None else like.val
    mean = curve.seconds[-1] / done
    changes = {
        "val": {name: longer(values, model.get(name)) for name, values in curve.val.items()},
        "loss": longer(curve.loss, None if like is None else like.loss),
        "seconds": (*curve.seconds, *(curve.seconds[-1] + mean * more for more in range(1, epochs - done + 1))),
    }
    return curve.model_copy(update=changes)


def _lines(path: Path) -> list[str]:
    """Returns the lines of a table.

    Raises:
        ConfigError: If it cannot be read, is too large, or is no text.
    """
    try:
        content = path.read_bytes() if path.stat().st_size <= LARGEST else None
        if content is not None and content[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
                content = packed.read(LARGEST + 1)
        if content is None or len(content) > LARGEST:
            raise ConfigError(f"{path}: holds more than {LARGEST >> 20} MB; name a table of recorded curves")
        lines = content.decode().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: no such file; name a table of recorded curves, or a search's run folder") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder without a search; name a table, or a search's run folder") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a table of curves ({error}); record it again") from None
    if len(lines) > MOST + 1:
        raise ConfigError(f"{path}: holds more than {MOST} curves; drop some")
    return lines


def _mapping(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        value = parse_json(line)
    except ValueError as error:
        raise ConfigError(f"{path}:{number}: no JSON ({error}); record the table again, or drop the line") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}:{number}: no mapping; name a table of recorded curves")
    return value


def _checked(curve: Recorded, header: Header, place: str) -> Recorded:
    """Returns a curve, all of whose series are of the header's length.

    Raises:
        ConfigError: If one is not, parameters or the header's metric are missing, or time runs backwards.
    """
    series = {"loss": curve.loss, "seconds": curve.seconds}
    series |= {f"val {name}": values for name, values in curve.val.items()}
    series |= {f"test {name}": values for name, values in curve.test.items()}
    for name, values in series.items():
        if len(values) != header.epochs:
            raise ConfigError(f"{place}: {name} has {len(values)} epochs of {header.epochs}; record it again")
    if not any(name.partition("[")[0] in header.parameters for name in curve.parameters):
        raise ConfigError(f"{place}: parameters has none of those that the first line names; record it again")
    if header.metric not in curve.val:
        raise ConfigError(f"{place}: val lacks {header.metric}; record it again")
    if any(later <= earlier for earlier, later in zip((0.0, *curve.seconds), curve.seconds, strict=False)):
        raise ConfigError(f"{place}: seconds do not rise from epoch to epoch; record it again")
    return curve
