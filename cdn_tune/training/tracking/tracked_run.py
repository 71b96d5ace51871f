"""What is logged of a training, a search, or one of its trials."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cdn_tune.config import Experiment
from cdn_tune.data.mark import Mark
from cdn_tune.training.reports import EpochReport
from cdn_tune.training.runs.records import read_metrics, scalars

Status = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
STATUS: dict[str, Status] = {  # MLflow's word for a state; the others are to go on: SCHEDULED
    "running": "RUNNING",
    "complete": "FINISHED",
    "pruned": "KILLED",
    "failed": "FAILED",
}
_OTHER = re.compile(r"[^\w.\-/ ]")  # what names of MLflow's metrics and parameters do not have


@dataclass(frozen=True)
class TrackedRun:
    """How a run stands; two are the same run if they have the same key.

    Attributes:
        key: Tells it from the others of a run folder: ``train``, ``search``, ``trial 3``.
        name: For people.
        state: In cdn-tune's words, such as ``pruned``.
        status: In MLflow's.
        steps: Epochs reported; of a search, trials that have ended.
        metric: The val metric that chooses.
        parent: Key of the run that it belongs to.
        tags: What it was, in words.
        params: Its parameters, by dotted key.
        started: Milliseconds since 1970.
        ended: The same.
        folder: Holds its epochs' records.
        values: What is measured at `steps`, of a run without such records.
    """

    key: str
    name: str
    state: str
    status: Status
    steps: int
    metric: str
    parent: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    started: int | None = None
    ended: int | None = None
    folder: Path | None = None
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """What is measured at one step."""

    step: int
    milliseconds: int | None  # since 1970, of the run's start and the time it has spent; None if that is unknown
    values: dict[str, float]


def points(
    run: TrackedRun, after: int, records: Callable[[Path], list[dict[str, Any]]] = read_metrics
) -> Iterator[Point]:
    """Yields a run's measurements after a step, in order; what is not finite is left out.

    Args:
        run: The run.
        after: The last step that is known already.
        records: Reads the epochs' records from the run's folder.
    """
    if run.folder is None:
        yield Point(run.steps, run.ended, _named(run.values))
        return
    spent = 0.0
    for report in map(EpochReport.read, records(run.folder)):
        spent += report.train_seconds + report.val_seconds
        if report.epoch > after:
            at = None if run.started is None else run.started + round(1000 * spent)
            yield Point(report.epoch, at, _named({**scalars(report), f"best/{run.metric}": report.best_value}))


def plain_name(name: str) -> str:
    """Returns a name as MLflow takes it: ``val/R1@0.5`` is ``val/R1_at_0.5``."""
    return _OTHER.sub("_", name.replace("@", "_at_"))


def _named(values: Mapping[str, float]) -> dict[str, float]:
    return {plain_name(name): value for name, value in values.items() if math.isfinite(value)}


def experiment_tags(experiment: Experiment, planted: Mark, kind: str) -> dict[str, str]:
    """Returns the tags of an experiment's run: what kind of run it is, and on which data."""
    return {
        "kind": kind,
        "dataset": experiment.data.dataset,
        "data": "planted" if planted is True else planted or "real",
        "family": experiment.model.name,
        "seed": str(experiment.seed),
    }
