"""The queries of a report: the run's predictions and what the model sees in some, or why they are not there."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import torch

from cdn_tune.errors import CdnTuneError
from cdn_tune.report.predictions import Cases, Predictions, choose_cases, recorded_predictions
from cdn_tune.report.record import PREDICTIONS, RunRecord
from cdn_tune.report.viewer import Viewer, Views

# What keeps the model from being looked at; the trials of a running search may fill the GPU.
_FAULTS = (CdnTuneError, OSError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Answers:
    """What there is to browse.

    Attributes:
        predictions: The answers; None if there are none to show.
        cases: Queries worth a look.
        views: What the model sees in some of them; None if it could not be opened.
        checkpoint: The checkpoint that was looked at, in words.
        notices: What is missing and how to get it, one line each.
    """

    predictions: Predictions | None
    cases: Cases
    views: Views | None
    checkpoint: str
    notices: tuple[str, ...]


def answers_of(record: RunRecord, count: int, seconds: float) -> Answers:
    """Collects a run's answers.

    Recorded predictions are preferred. Without them the best checkpoint answers the queries of the val split; the test
    split is never opened here unless its predictions are on record.

    Args:
        record: The run.
        count: Queries to look at, at most; with 0 the model is left alone.
        seconds: For answering, and for looking.
    """
    notices: list[str] = []
    predictions = _recorded(record.run / PREDICTIONS, notices)
    viewer: Viewer | None = None
    views: Views | None = None
    checkpoint = ""
    if count:
        try:
            named = (record.evaluation or {}).get("checkpoint") if predictions else None
            viewer = Viewer(record.run, predictions.split if predictions else "val", named)
            predictions = predictions or viewer.predict(seconds)
            checkpoint = f"{_within(viewer.checkpoint.path, record.run)}, epoch {viewer.checkpoint.epoch}"
        except _FAULTS as error:
            what = "score maps and attention are" if predictions else "queries are"
            notices.append(f"{what} not shown: {_first_line(error)}")
    if predictions is None:
        if not count:
            evaluate = f"cdn-tune evaluate {shlex.quote(str(record.run))}"
            notices.append(f"queries are not shown: the run has no {PREDICTIONS} yet; run {evaluate}")
        return Answers(None, Cases([], [], [], []), None, "", tuple(notices))
    seed = int(record.experiment.get("seed", 0))
    cases = choose_cases(predictions.queries, max(1, (count or 48) // 4), seed)
    if viewer:
        wanted = [predictions.queries[at].id for at in cases.positions()]
        try:
            views = viewer.views(wanted, seconds)
        except _FAULTS as error:
            notices.append(f"score maps and attention are not shown: {_first_line(error)}")
        else:
            if len(views.by_id) < len(wanted):
                notices.append(
                    f"score maps and attention of {len(views.by_id)} of {len(wanted)} chosen queries are shown: the "
                    "others took too long, or are not in the data as they are now"
                )
    return Answers(predictions, cases, views, checkpoint, tuple(notices))


def _recorded(path: Path, notices: list[str]) -> Predictions | None:
    if not path.exists():
        return None
    try:
        return recorded_predictions(path)
    except CdnTuneError as error:
        notices.append(str(error))
        return None


def _within(path: Path, run: Path) -> str:
    return str(path.relative_to(run) if path.is_relative_to(run) else path)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
