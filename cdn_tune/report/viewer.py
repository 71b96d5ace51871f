"""What the best checkpoint computes in a split's queries: answers, score maps, attention, rows along the timeline.

Shape letters: B batch, S clips, P valid cells, T frames, J attention steps.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from cdn_tune.data.annotations import Split
from cdn_tune.data.batches import sequential_batches
from cdn_tune.data.dataset import Batch, MomentDataset, load_split
from cdn_tune.data.tokenizer import tokenizer_of
from cdn_tune.data.vocabulary import Vocabulary
from cdn_tune.errors import CheckpointError
from cdn_tune.evaluation.choose_checkpoint import Choice, choose_best
from cdn_tune.evaluation.queries import QueryResult, query_results
from cdn_tune.model.family import Pictures, Rows
from cdn_tune.report.cases import TOP
from cdn_tune.training.runs.checkpoint import load_checkpoint
from cdn_tune.training.step.batch_loss import autocast, resolve_precision
from cdn_tune.training.step.process_group import this_world

Bytes = npt.NDArray[np.uint8]
_ROWS = 24  # of a strip, at most
_CELLS = 256  # of a row, at most: more than there are pixels to tell apart


@dataclass(frozen=True)
class Predictions:
    """The answers to a split's queries."""

    split: str  # ``test`` or ``val``
    queries: Sequence[QueryResult]  # in the split's order
    whole: int  # how many queries the split has
    source: str  # where they come from, in words


@dataclass(frozen=True)
class Strip:
    """Rows of cells along a query's timeline."""

    title: str
    names: tuple[str, ...]  # of the rows
    rows: tuple[Bytes, ...]  # 255 at the highest value of them all
    seconds: tuple[float, float] | None  # where they begin and end; None: with the video


@dataclass(frozen=True)
class View:
    """What the model computes in one query."""

    strips: tuple[Strip, ...]
    top: float = 0.0  # highest score of a valid cell
    scores: Bytes | None = None  # of the valid cells, row by row, 255 at `top` [P]; None of models without a map


@dataclass(frozen=True)
class Views:
    """What the model computes in some queries."""

    clips: int = 0  # of the map, S; 0 of models without
    cells: npt.NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, np.uint16))  # see `_cells` [P]
    by_id: dict[str, View] = field(default_factory=dict)  # by the annotation's id

    @property
    def titles(self) -> list[str]:
        """What there is to see, in words."""
        found = ["score map"] if self.clips else []
        found += [strip.title.lower() for view in self.by_id.values() for strip in view.strips]
        return list(dict.fromkeys(found))


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

        None if the model has no pictures.
        """
        at = {item.id: index for index, item in enumerate(self.dataset.annotations)}
        wanted = [at[name] for name in ids if name in at]
        views = Views()
        until = time.monotonic() + seconds
        for begin in range(0, len(wanted), self._config.batch_size):
            if begin and time.monotonic() > until:
                break
            indices = np.array(wanted[begin : begin + self._config.batch_size], dtype=np.int64)
            batch, output = self._forward(indices)
            shown = self._model.pictures(output)
            with torch.no_grad(), autocast(self._device, self._dtype):
                rows = (*_attention(shown), *self._model.rows(output, *self._model.inputs_of(batch)))
            if shown.score_map is None and not rows:
                return None
            if shown.score_map is not None and not views.clips:
                views = Views(len(shown.score_map.mask), _cells(shown.score_map.mask))
            scores = None if shown.score_map is None else shown.score_map.scores[:, shown.score_map.mask].cpu().numpy()
            counts = batch.word_mask.sum(dim=1).tolist()
            for row, index in enumerate(indices.tolist()):
                words = _words(self.dataset, index, int(counts[row]))
                strips = tuple(_strip(each, row, words) for each in rows)
                map_ = (0.0, None) if scores is None else (float(scores[row].max()), _bytes(scores[row]))
                views.by_id[self.dataset.annotations[index].id] = View(strips, *map_)
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


def _cells(mask: Tensor) -> npt.NDArray[np.uint16]:
    """Returns row times S plus column of the valid cells of a map [S, S], ascending [P]."""
    return mask.flatten().nonzero()[:, 0].cpu().numpy().astype(np.uint16)


def _attention(shown: Pictures) -> tuple[Rows, ...]:
    """Returns the frame attention of an output, a row per step."""
    if shown.attention is None:
        return ()
    steps = shown.attention.unbind(1)
    return (Rows("Frame attention", steps, tuple(f"step {step + 1}" for step in range(len(steps)))),)


def _words(dataset: MomentDataset, index: int, count: int) -> list[str]:
    """Returns the words of a query as the model reads them; token features are known by their numbers alone."""
    if isinstance(dataset.vocabulary, Vocabulary):
        return tokenizer_of(dataset.vocabulary.tokenizer)(dataset.annotations[index].query)[:count]
    return [f"token {number + 1}" for number in range(count)]


def _strip(rows: Rows, at: int, words: Sequence[str]) -> Strip:
    """Returns the rows of the query at a place of the batch."""
    names = (*rows.names, *words)[: min(_ROWS, len(rows.values))]
    found = []
    for values in rows.values[: len(names)]:
        cells = values[at].float()
        few = functional.adaptive_max_pool1d(cells[None], _CELLS)[0] if len(cells) > _CELLS else cells
        found.append(few.cpu().numpy())
    highest = max((float(np.nan_to_num(row, nan=0.0, posinf=0.0, neginf=0.0).max()) for row in found), default=0.0)
    begin_end = None if rows.seconds is None else tuple(rows.seconds[at].tolist())
    shown = tuple(_bytes(row, highest) for row in found)
    return Strip(rows.title, names, shown, cast(tuple[float, float] | None, begin_end))


def _bytes(values: npt.NDArray[np.float32], top: float | None = None) -> Bytes:
    """Returns values from 0 to `top`, by default their maximum, as 0 … 255; what is no number as 0."""
    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    scaled: Bytes = (255 * finite / max(float(finite.max()) if top is None else top, 1e-12)).round().astype(np.uint8)
    return scaled
