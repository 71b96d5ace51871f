"""The queries of a report: the run's predictions, which of them to show first, and what the model computes in some.

Shape letters: B batch, S clips, P valid cells, T frames, J attention steps.
"""

import base64
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.data.annotations import Split
from cdn_tune.data.batches import sequential_batches
from cdn_tune.data.dataset import Batch, load_split
from cdn_tune.errors import CdnTuneError, CheckpointError
from cdn_tune.evaluation.choose_checkpoint import Choice, choose_best
from cdn_tune.evaluation.queries import PREDICTIONS, QueryResult, query_results, read_query_results
from cdn_tune.report.record import RunRecord
from cdn_tune.training.runs.checkpoint import load_checkpoint
from cdn_tune.training.step.batch_loss import autocast, resolve_precision
from cdn_tune.training.step.process_group import this_world

TOP = 5
Bytes = npt.NDArray[np.uint8]
# What keeps the model from being run; the trials of a running search may fill the GPU.
_FAULTS = (CdnTuneError, OSError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Predictions:
    """The answers to a split's queries."""

    split: str  # ``test`` or ``val``
    queries: Sequence[QueryResult]  # in the split's order
    whole: int  # how many queries the split has
    source: str  # where they come from, in words


@dataclass(frozen=True)
class Cases:
    """Queries to show first, as positions in `Predictions.queries`."""

    best: list[int]
    typical: list[int]
    worst: list[int]
    sample: list[int]

    def positions(self) -> list[int]:
        """Returns every position once, the kinds in turn, so that any beginning has some of each."""
        columns = (self.worst, self.best, self.typical, self.sample)
        longest = max(map(len, columns))
        return list(dict.fromkeys(column[row] for row in range(longest) for column in columns if row < len(column)))


@dataclass(frozen=True)
class View:
    """What the model computes in one query."""

    top: float  # highest score of a valid cell
    scores: Bytes  # of the valid cells, row by row, 255 at `top` [P]
    attention: Bytes | None  # frame attention, 255 at its highest weight [J, T]; None of models without


@dataclass(frozen=True)
class Views:
    """What the model computes in some queries."""

    clips: int  # of the map, S
    cells: npt.NDArray[np.uint16]  # row times S plus column of the valid cells, ascending [P]
    by_id: dict[str, View] = field(default_factory=dict)  # by the annotation's id

    @property
    def has_attention(self) -> bool:
        """Whether the model has frame attention."""
        return any(view.attention is not None for view in self.by_id.values())


@dataclass(frozen=True)
class Answers:
    """The queries, and the answers to them, that a report shows."""

    predictions: Predictions | None = None
    cases: Cases = field(default_factory=lambda: Cases([], [], [], []))
    views: Views | None = None  # None if the model could not be run, or has no score map
    checkpoint: str = ""  # of the views, in words
    notices: tuple[str, ...] = ()  # what is missing and how to get it, one line each

    def plain(self) -> dict[str, Any] | None:
        """Returns them for the page's script: columns, since thousands of equal keys would be waste.

        ``moments`` and ``truth`` are seconds; ``views`` is by position.
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
            "views": views
            and {
                "clips": views.clips,
                "cells": base64_of(views.cells),
                "of": {
                    str(at[name]): {
                        "top": round(view.top, 4),
                        "scores": base64_of(view.scores),
                        "attention": None if view.attention is None else base64_of(view.attention),
                        "steps": 0 if view.attention is None else view.attention.shape[0],
                    }
                    for name, view in views.by_id.items()
                    if name in at
                },
            },
        }


def base64_of(values: npt.NDArray[Any]) -> str:
    """Returns an array's bytes, little-endian, in base64."""
    return base64.b64encode(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def collect_answers(record: RunRecord, count: int, seconds: float) -> Answers:
    """Collects a run's answers.

    Recorded predictions are preferred. Without them the best checkpoint answers the queries of the val split; the test
    split is never opened here unless its predictions are on record.

    Args:
        record: The run.
        count: Queries with views, at most; with 0 the model is not run.
        seconds: For answering, and for the views.
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
    cases = choose_cases(predictions.queries, max(1, (count or 48) // 4), int(record.experiment.get("seed", 0)))
    views: Views | None = None
    if viewer:
        wanted = [predictions.queries[at].id for at in cases.positions()]
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
    return Answers(predictions, cases, views, checkpoint, tuple(notices))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def recorded_predictions(path: Path, evaluation: Mapping[str, Any] | None = None) -> Predictions:
    """Returns what an evaluation, whose entries may be given, recorded in ``predictions.jsonl``.

    Raises:
        DataError: Naming the file and the line that is damaged; if it is of another evaluation.
    """
    results = read_query_results(path, evaluation)
    return Predictions(results[0].split, results, len(results), path.name)


def choose_cases(queries: Sequence[QueryResult], count: int, seed: int) -> Cases:
    """Chooses the best, the most typical and the worst answers, and a sample of all, `count` of each at most.

    Best and worst go by IoU, of equals the one of which the model was surest; typical are those nearest to the median.
    """
    ious = [query.iou for query in queries]
    scores = [query.moments[0][2] if query.moments else 0.0 for query in queries]
    everything = range(len(queries))
    middle = float(np.median(ious)) if ious else 0.0
    best = sorted(everything, key=lambda at: (-ious[at], -scores[at], at))[:count]
    worst = sorted(everything, key=lambda at: (ious[at], -scores[at], at))[:count]
    typical = sorted(everything, key=lambda at: (abs(ious[at] - middle), -scores[at], at))[:count]
    drawn = np.random.default_rng(seed).permutation(len(queries))[:count]
    return Cases(best, typical, worst, sorted(int(at) for at in drawn))


class Viewer:
    """A checkpoint and a split's queries, opened once.

    Args:
        run: The run folder.
        split: Whose queries.
        checkpoint: Path within the run; the best one on val if None.

    Raises:
        CdnTuneError: If checkpoint or data cannot be used.
    """

    def __init__(self, run: Path, split: str, checkpoint: str | None = None) -> None:
        choice = _choice(run, checkpoint)
        self.checkpoint, self.notices = choice.checkpoint, choice.damaged
        self.split = cast(Split, split)
        experiment = self.checkpoint.experiment
        self.dataset = load_split(experiment.data, self.split, experiment.model.inputs.sequences)
        self._device = this_world().device
        self._dtype = resolve_precision(experiment.train.precision, self._device)
        self._model = self.checkpoint.model.to(self._device).eval()
        self._config = experiment.eval

    def predict(self, seconds: float) -> Predictions:
        """Answers the split's queries, as many as can be in the given time, evenly spread over the split."""
        count = len(self.dataset)
        spread = _spread(count)
        found: dict[int, QueryResult] = {}
        until = time.monotonic() + seconds
        for rows in sequential_batches(count, self._config.batch_size):
            if found and time.monotonic() > until:
                break
            indices = spread[rows]
            batch, output = self._forward(indices)
            candidates = self._model.spans(output, batch.durations)
            top, scores = self._model.suppress(candidates, TOP, *self._config.suppression)
            items = [self.dataset.annotations[index] for index in indices]
            results = query_results(items, top.cpu(), scores.cpu(), self.split)
            found |= dict(zip(indices.tolist(), results, strict=True))
        ranked = tuple(found[index] for index in sorted(found))
        return Predictions(self.split, ranked, count, "the best checkpoint, computed for this report")

    def views(self, ids: Sequence[str], seconds: float) -> Views | None:
        """Returns views of queries, in the given order, as many as can be in the given time, without unknown ids.

        None if the model has no score map.
        """
        at = {item.id: index for index, item in enumerate(self.dataset.annotations)}
        wanted = [at[name] for name in ids if name in at]
        views = Views(0, np.empty(0, np.uint16))
        until = time.monotonic() + seconds
        for begin in range(0, len(wanted), self._config.batch_size):
            if begin and time.monotonic() > until:
                break
            indices = np.array(wanted[begin : begin + self._config.batch_size], dtype=np.int64)
            _, output = self._forward(indices)
            shown = self._model.pictures(output)
            if shown.score_map is None:
                return None
            marks, mask = shown.score_map
            if not views.by_id:
                views = Views(len(mask), mask.flatten().nonzero()[:, 0].cpu().numpy().astype(np.uint16))
            scores = marks[:, mask].cpu().numpy()  # [B, P]
            attention = None if shown.attention is None else shown.attention.cpu().numpy()  # [B, J, T]
            for row, index in enumerate(indices.tolist()):
                weights = None if attention is None else _bytes(attention[row])
                name = self.dataset.annotations[index].id
                views.by_id[name] = View(float(scores[row].max()), _bytes(scores[row]), weights)
        return views

    def _forward(self, indices: npt.NDArray[np.int64]) -> tuple[Batch, Any]:
        with torch.no_grad(), autocast(self._device, self._dtype):
            batch = self.dataset.batch(indices).to(self._device)
            return batch, self._model(*self._model.inputs_of(batch))


def _choice(run: Path, named: str | None) -> Choice:
    if named is not None:
        try:
            return Choice((load_checkpoint(run / named),))
        except CheckpointError:
            pass  # removed when a better trial came, or damaged: the page names the best that is left beside its views
    return choose_best(run)


def _spread(count: int) -> npt.NDArray[np.int64]:
    """Returns an order of 0 … count - 1 of which every beginning is spread over all (by bit reversal)."""
    bits = max(1, (count - 1).bit_length())
    reversed_ = [int(format(at, f"0{bits}b")[::-1], 2) for at in range(1 << bits)]
    return np.array([at for at in reversed_ if at < count], dtype=np.int64)


def _bytes(values: npt.NDArray[np.float32]) -> Bytes:
    """Returns values from 0 to their maximum as 0 … 255; what is no number as 0."""
    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    scaled: Bytes = (255 * finite / max(float(finite.max()), 1e-12)).round().astype(np.uint8)
    return scaled
