"""The queries of a report: the run's predictions, which of them to show first, what the model computes, the videos."""

import base64
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.errors import CdnTuneError
from cdn_tune.evaluation.queries import PREDICTIONS, read_query_results
from cdn_tune.report.cases import TOP, Cases, Mistakes, choose_cases, choose_mistakes
from cdn_tune.report.footage import Footage, collect_footage
from cdn_tune.report.record import RunRecord
from cdn_tune.report.viewer import Predictions, View, Viewer, Views

# What keeps the model from being run; the trials of a running search may fill the GPU.
_FAULTS = (CdnTuneError, OSError, torch.OutOfMemoryError)
_THRESHOLD = 0.5  # IoU from which an answer is right, where the run's metric has none


@dataclass(frozen=True)
class Answers:
    """The queries, and the answers to them, that a report shows."""

    predictions: Predictions | None = None
    cases: Cases = field(default_factory=lambda: Cases([], [], [], []))
    mistakes: Mistakes = field(default_factory=lambda: Mistakes(_THRESHOLD))
    views: Views | None = None  # None if the model could not be run, or has no pictures
    checkpoint: str = ""  # of the views, in words
    footage: Footage | None = None  # None if no videos are at hand
    notices: tuple[str, ...] = ()  # what is missing and how to get it, one line each

    def plain(self, links: Mapping[str, str]) -> dict[str, Any] | None:
        """Returns them for the page's script: columns, since thousands of equal keys would be waste.

        ``moments`` and ``truth`` are seconds; ``views`` is by position, ``links`` and ``frames`` are by the video's.

        Args:
            links: URLs of the videos, for the page, by their names.
        """
        if self.predictions is None:
            return None
        queries, views = self.predictions.queries, self.views
        videos = {name: at for at, name in enumerate(dict.fromkeys(query.video for query in queries))}
        at = {query.id: position for position, query in enumerate(queries)}
        return {
            "split": self.predictions.split,
            "id": [query.id for query in queries],
            "query": [query.query for query in queries],
            "videos": list(videos),
            "video": [videos[query.video] for query in queries],
            "duration": [round(query.duration, 2) for query in queries],
            "truth": [[round(end, 2) for end in query.truth] for query in queries],
            "moments": [
                [[round(start, 2), round(end, 2), round(score, 4)] for start, end, score in query.moments[:TOP]]
                for query in queries
            ],
            "iou": [round(query.iou, 4) for query in queries],
            "cases": vars(self.cases),
            "links": {str(videos[name]): link for name, link in links.items() if name in videos},
            "frames": {
                str(videos[name]): vars(frames)
                for name, frames in (self.footage.frames if self.footage else {}).items()
                if name in videos
            },
            "views": views
            and {
                "clips": views.clips,
                "cells": base64_of(views.cells),
                "of": {str(at[name]): _plain(view) for name, view in views.by_id.items() if name in at},
            },
        }


def _plain(view: View) -> dict[str, Any]:
    return {
        "top": round(view.top, 4),
        "scores": None if view.scores is None else base64_of(view.scores),
        "strips": [
            {
                "title": strip.title,
                "names": strip.names,
                "rows": [base64_of(row) for row in strip.rows],
                "seconds": strip.seconds,
            }
            for strip in view.strips
        ],
    }


def base64_of(values: npt.NDArray[Any]) -> str:
    """Returns an array's bytes, little-endian, in base64."""
    return base64.b64encode(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def collect_answers(record: RunRecord, count: int, seconds: float, folder: Path | None = None) -> Answers:
    """Collects a run's answers.

    Recorded predictions are preferred. Without them the best checkpoint answers the queries of the val split; the test
    split is never opened here unless its predictions are on record.

    Args:
        record: The run.
        count: Queries with views, at most; with 0 the model is not run.
        seconds: For answering, for the views, and for the frames of videos.
        folder: With the videos, if they are at hand.
    """
    notices: list[str] = []
    predictions: Predictions | None = None
    path = record.run / PREDICTIONS
    try:
        predictions = recorded_predictions(path, record.evaluation) if path.exists() else None
    except CdnTuneError as error:
        notices.append(str(error))
    viewer: Viewer | None = None
    checkpoint = ""
    if count:
        try:
            named = (record.evaluation or {}).get("checkpoint") if predictions else None
            viewer = Viewer(record.run, predictions.split if predictions else "val", named)
            notices += viewer.notices
            predictions = predictions or viewer.predict(seconds)
            file = viewer.checkpoint.path
            within = file.relative_to(record.run) if file.is_relative_to(record.run) else file
            checkpoint = f"{within}, epoch {viewer.checkpoint.epoch}"
        except _FAULTS as error:
            what = "score maps and attention are" if predictions else "queries are"
            notices.append(f"{what} not shown: {_first_line(error)}")
    if predictions is None:
        if not count:
            evaluate = f"cdn-tune evaluate {shlex.quote(str(record.run))}"
            notices.append(f"queries are not shown: the run has no {PREDICTIONS} yet; run {evaluate}")
        return Answers(notices=tuple(notices))
    queries = predictions.queries
    cases = choose_cases(queries, max(1, (count or 48) // 4), int(record.experiment.get("seed", 0)))
    mistakes = choose_mistakes(queries, _threshold(record.metric))
    shown = cases.positions(mistakes)
    views: Views | None = None
    if viewer:
        wanted = [queries[at].id for at in shown[:count]]
        try:
            views = viewer.views(wanted, seconds)
        except _FAULTS as error:
            notices.append(f"score maps and attention are not shown: {_first_line(error)}")
        else:
            if views is not None and len(views.by_id) < len(wanted):
                notices.append(
                    f"score maps and attention of {len(views.by_id)} of {len(wanted)} chosen queries are shown: the "
                    "others took too long, or are not in the data as they are now"
                )
    footage: Footage | None = None
    if folder is not None:
        names = [queries[at].video for at in shown]
        try:
            footage = collect_footage(folder, {each.video: each.duration for each in queries}, names, seconds)
        except (CdnTuneError, OSError) as error:
            notices.append(f"videos are not shown: {_first_line(error)}")
        else:
            notices += footage.notices
    return Answers(predictions, cases, mistakes, views, checkpoint, footage, tuple(notices))


def _threshold(metric: str) -> float:
    """Returns the IoU from which an answer is right: that of a metric such as R1@0.5."""
    try:
        threshold = float(metric.partition("@")[2])
    except ValueError:
        return _THRESHOLD
    return threshold if 0 < threshold < 1 else _THRESHOLD


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def recorded_predictions(path: Path, evaluation: Mapping[str, Any] | None = None) -> Predictions:
    """Returns what an evaluation, whose entries may be given, recorded in ``predictions.jsonl``.

    Raises:
        DataError: Naming the file and the line that is damaged; if it is of another evaluation.
    """
    results = read_query_results(path, evaluation)
    return Predictions(results[0].split, results, len(results), path.name)
