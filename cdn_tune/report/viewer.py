"""The answers, score maps and frame attention of a run's best checkpoint.

Shape letters: B batch, S clips, P valid cells, T frames, J attention steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.data.annotations import Split
from cdn_tune.data.batches import sequential_batches
from cdn_tune.data.dataset import Batch, MomentDataset, load_split
from cdn_tune.errors import CheckpointError, RunError
from cdn_tune.evaluation.choose_checkpoint import choose_best
from cdn_tune.evaluation.queries import QueryResult, query_results
from cdn_tune.report.predictions import Predictions
from cdn_tune.training.runs.checkpoint import Checkpoint, load_checkpoint
from cdn_tune.training.step.batch_loss import autocast, resolve_precision
from cdn_tune.training.step.process_group import this_world

TOP = 5
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class View:
    """What the model sees in one query.

    Attributes:
        top: Highest score of a valid cell.
        scores: Scores of the valid cells, row by row, 255 at `top` [P].
        attention: Frame attention, 255 at its highest weight [J, T]; None with mean pooling.
    """

    top: float
    scores: Bytes
    attention: Bytes | None


@dataclass(frozen=True)
class Views:
    """What the model sees in some queries.

    Attributes:
        clips: Clips S of the map.
        cells: Row times S plus column of the valid cells, ascending [P].
        by_id: Views by the annotation's id.
    """

    clips: int
    cells: npt.NDArray[np.uint16]
    by_id: dict[str, View] = field(default_factory=dict)


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
        self.checkpoint = _checkpoint(run, checkpoint)
        self.split = cast(Split, split)
        experiment = self.checkpoint.experiment
        self.dataset: MomentDataset = load_split(experiment.data, self.split)
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
            found_here = self._model.spans(output, batch.durations)
            top, marks = self._model.suppress(found_here, TOP, self._config.nms_threshold)
            items = [self.dataset.annotations[index] for index in indices]
            results = query_results(items, top.cpu(), marks.cpu(), self.split)
            found |= dict(zip(indices.tolist(), results, strict=True))
        told = "the best checkpoint, computed for this report"
        return Predictions(self.split, tuple(found[index] for index in sorted(found)), count, told)

    def views(self, ids: Sequence[str], seconds: float) -> Views:
        """Looks at some queries, in the given order, as many as can be in the given time; unknown ids are left out."""
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
                raise RunError(f"model.name={self._model.config.name} has none")
            marks, mask = shown.score_map
            if not views.by_id:
                cells = mask.flatten().nonzero()[:, 0].cpu().numpy().astype(np.uint16)
                views = Views(len(mask), cells)
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


def _checkpoint(run: Path, named: str | None) -> Checkpoint:
    if named is not None:
        try:
            return load_checkpoint(run / named)
        except CheckpointError:
            pass  # it went when a better trial came, or it is damaged: the best that is left is told beside its views
    return choose_best(run).checkpoint


def _spread(count: int) -> npt.NDArray[np.int64]:
    """An order of 0 … count - 1 of which every beginning is spread over all (by bit reversal)."""
    bits = max(1, (count - 1).bit_length())
    reversed_ = [int(format(at, f"0{bits}b")[::-1], 2) for at in range(1 << bits)]
    return np.array([at for at in reversed_ if at < count], dtype=np.int64)


def _bytes(values: npt.NDArray[np.float32]) -> Bytes:
    """Returns values from 0 to their maximum as 0 … 255; what is no number as 0."""
    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    scaled: Bytes = (255 * finite / max(float(finite.max()), 1e-12)).round().astype(np.uint8)
    return scaled
