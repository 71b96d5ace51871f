"""Metrics of retrieved moments: each a number per query, of which a split's metric is the mean; groups of queries.

`config.tables.METRICS` lists them. Val during training and the test split are measured by the same functions, so that
intervals and tests need nothing else than the numbers per query.

Shape letters: Q queries, M metrics, n moments returned per query.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdn_tune.config.tables import AP_MOMENTS, find_metric, resolve
from cdn_tune.moments.spans import iou as iou_of

Array = Tensor | NDArray[np.generic]
Groups = dict[str, dict[str, Tensor]]
AP_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))  # what mAP averages over, as QVHighlights does

LENGTH_SHARES = (0.1, 0.25, 0.5)
LENGTH_SECONDS = (5.0, 10.0, 30.0)
POSITIONS = (1 / 3, 2 / 3)
QUERY_WORDS = (5, 10)


class Answers:
    """What was retrieved for Q queries, and what is true.

    Attributes:
        top: Spans in seconds, best first, NaN-padded, float64 [Q, n, 2]. Of equal scores the first counts first.
        scores: Their scores, float64 [Q, n]; without scores, minus the rank.
        moments: Annotated spans in seconds, float64 [Q, 2].
        durations: Of the videos in seconds, float64 [Q].
        overlap: IoU of each span with the truth, 0 where there is none, float64 [Q, n].
        closed: Whether an IoU equal to a threshold is a hit, as SnAG counts; by default it is none.

    Raises:
        ValueError: If there is no query, or the shapes do not fit.
    """

    def __init__(
        self, top: Array, moments: Array, durations: Array, scores: Array | None = None, closed: bool = False
    ) -> None:
        self.closed = closed
        self.top, self.moments, self.durations = _cpu64(top), _cpu64(moments), _cpu64(durations)
        queries = len(self.top)
        if queries == 0:
            raise ValueError("no queries to measure: the query set is empty")
        shapes = [tuple(each.shape) for each in (self.top, self.moments, self.durations)]
        if self.top.ndim != 3 or shapes != [(queries, max(1, shapes[0][1]), 2), (queries, 2), (queries,)]:
            raise ValueError(f"want top [Q, n, 2], moments [Q, 2] and durations [Q], got {shapes}")
        ranks = torch.arange(1, shapes[0][1] + 1, dtype=torch.float64)
        self.scores = -ranks.expand(queries, -1) if scores is None else _cpu64(scores)
        self.overlap = iou_of(self.top, self.moments[:, None, :]).nan_to_num(nan=0.0)
        self._ranks: dict[float, Tensor] = {}

    def rank(self, iou: float) -> Tensor:
        """Returns the rank, from 1, of the first moment whose IoU is above a threshold, else 0: int64 [Q].

        Strictly above, unless `closed`.
        """
        if iou not in self._ranks:
            hits = self.overlap >= iou if self.closed else self.overlap > iou  # [Q, n]
            first = hits.double().argmax(dim=1) + 1  # argmax is the first of equals
            self._ranks[iou] = torch.where(hits.any(dim=1), first, 0)
        return self._ranks[iou]


def recall(answers: Answers, n: int, iou: float) -> Tensor:
    """Returns R@n: 1 where one of the first n moments has an IoU above the threshold, else 0, [Q]."""
    rank = answers.rank(iou)
    return ((rank > 0) & (rank <= n)).double()


def first_iou(answers: Answers) -> Tensor:
    """Returns the IoU of the first moment [Q], whose mean is mIoU."""
    return answers.overlap[:, 0]


def average_precision(answers: Answers, iou: float) -> Tensor:
    """Returns AP at an IoU threshold [Q]: one over the rank of the first moment above it, 0 where there is none.

    This is the average precision of QVHighlights' evaluation (Lei et al., arXiv 2107.09609, `standalone_eval` of
    moment_detr: area under the interpolated precision-recall curve of each query, up to 10 moments) for a query with
    one true moment: recall steps from 0 to 1 at that rank, where precision is one over it; a later overlapping moment
    counts as wrong. One difference: an IoU equal to the threshold is no hit here, as in the recall of this field.
    """
    rank = answers.rank(iou)
    return torch.where((rank > 0) & (rank <= AP_MOMENTS), 1.0 / rank.clamp(min=1).double(), 0.0)


def mean_average_precision(answers: Answers) -> Tensor:
    """Returns the mean of AP over `AP_IOUS`, [Q]."""
    return torch.stack([average_precision(answers, iou) for iou in AP_IOUS]).mean(dim=0)


@dataclass(frozen=True)
class Measures:
    """What each query adds to each metric.

    Attributes:
        names: M names, e.g. ``R1@0.5``, ``mIoU``, ``mAP@0.5``, ``mAP``.
        values: float64 [Q, M]; a metric is the mean of its column.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]

    @property
    def means(self) -> dict[str, float]:
        """The metrics by name, in [0, 1]."""
        return {name: float(column.mean()) for name, column in zip(self.names, self.values.T.copy(), strict=True)}

    def only(self, names: Sequence[str]) -> Measures:
        """Returns some of the metrics."""
        kept = [index for index, name in enumerate(self.names) if name in names]
        return Measures(tuple(self.names[index] for index in kept), self.values[:, kept])


def measure(answers: Answers, names: Sequence[str]) -> Measures:
    """Returns what each query adds to some metrics, named as `config.tables.find_metric` reads them.

    Raises:
        ValueError: If a metric is unknown, or counts more moments than `answers` has.
    """
    columns = []
    for name in names:
        metric = find_metric(name)
        if metric.settings.get("n", 1) > answers.top.shape[1]:
            raise ValueError(f"{name} needs {metric.depth} moments per query, and there are {answers.top.shape[1]}")
        columns.append(resolve(metric.row.per_query)(answers, **metric.settings).numpy())
    return Measures(tuple(names), np.stack(columns, axis=1))


def mean_measures(many: Sequence[Measures]) -> Measures:
    """Returns the mean over models (seeds) of what each query adds."""
    return Measures(many[0].names, np.mean([each.values for each in many], axis=0))


def query_groups(durations: Tensor, moments: Tensor, words: Sequence[int]) -> Groups:
    """Returns bool masks [Q] by kind and label; of each kind every query is in one group. Empty groups are left out.

    Kinds: ``length_share`` (of the moment, as a share of its video), ``length_seconds`` (of the moment), ``position``
    (of its centre in the video), ``query_words``. A value at an edge is in the lower group.

    Args:
        durations: Seconds [Q].
        moments: Annotated spans in seconds [Q, 2].
        words: Words of each query.
    """
    length = moments[:, 1] - moments[:, 0]
    centre = moments.mean(dim=1) / durations
    count = torch.tensor(list(words), dtype=torch.float64)
    thirds = ("first third", "middle third", "last third")
    shares = _ranges([f"{100 * edge:g}" for edge in LENGTH_SHARES], "%")
    return {
        "length_share": _cut(length / durations, LENGTH_SHARES, shares),
        "length_seconds": _cut(length, LENGTH_SECONDS, _ranges([f"{edge:g}" for edge in LENGTH_SECONDS], "s")),
        "position": _cut(centre, POSITIONS, thirds),
        "query_words": _cut(count, QUERY_WORDS, _ranges([str(edge) for edge in QUERY_WORDS], "words")),
    }


def _cut(values: Tensor, edges: Sequence[float], labels: Sequence[str]) -> dict[str, Tensor]:
    index = torch.bucketize(values.double(), torch.tensor(list(edges), dtype=torch.float64))
    masks = {label: index == number for number, label in enumerate(labels)}
    return {label: mask for label, mask in masks.items() if bool(mask.any())}


def _ranges(edges: Sequence[str], unit: str) -> list[str]:
    inner = [f"{low}-{high} {unit}" for low, high in itertools.pairwise(edges)]
    return [f"up to {edges[0]} {unit}", *inner, f"above {edges[-1]} {unit}"]


def _cpu64(array: Array) -> Tensor:
    return torch.as_tensor(array).detach().to("cpu", torch.float64)
