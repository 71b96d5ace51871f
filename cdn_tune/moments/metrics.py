"""Metrics of retrieved moments: each a number per query, of which a split's metric is the mean; groups of queries.

`config.tables.METRICS` lists them. Val during training and the test split are measured by the same functions, so that
intervals and tests need nothing else than the numbers per query.

Shape letters: Q queries, M metrics, n moments returned per query, K true moments of a query.
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
        moments: Annotated spans in seconds, float64 [Q, K, 2], NaN-padded where queries have several; may be given as
            [Q, 2].
        durations: Of the videos in seconds, float64 [Q].
        overlaps: IoU of each span with each true one, float64 [Q, n, K]; -1 where either is padding, which is so no hit
            even where a threshold of 0 is `closed`.
        overlap: IoU of each span with the true one that fits it best, 0 where there is none, float64 [Q, n].
        true: Where there is a true span, bool [Q, K].
        closed: Whether an IoU equal to a threshold is a hit, as SnAG counts; by default it is none.
        several: Whether a query has more than one true span.

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
        if self.moments.ndim == 2:
            self.moments = self.moments[:, None]
        shapes = [tuple(each.shape) for each in (self.top, self.moments, self.durations)]
        fits = all(len(shape) == 3 and shape[0] == queries and shape[1] > 0 and shape[2] == 2 for shape in shapes[:2])
        if not fits or shapes[2] != (queries,):
            raise ValueError(f"want top [Q, n, 2], moments [Q, K, 2] or [Q, 2] and durations [Q], got {shapes}")
        ranks = torch.arange(1, shapes[0][1] + 1, dtype=torch.float64)
        self.scores = -ranks.expand(queries, -1) if scores is None else _cpu64(scores)
        self.true = self.moments.isfinite().all(dim=-1)
        there = self.top.isfinite().all(dim=-1)[:, :, None] & self.true[:, None]
        self.overlaps = iou_of(self.top[:, :, None], self.moments[:, None]).where(there, -1.0)
        self.overlap = self.overlaps.amax(dim=-1).clamp(min=0)
        self.several = bool((self.true.sum(dim=1) > 1).any())
        self._ranks: dict[float, Tensor] = {}

    def hits(self, overlaps: Tensor, iou: float) -> Tensor:
        """Returns where an IoU is above a threshold, or with `closed` equal to it: bool, of the shape of `overlaps`."""
        return overlaps >= iou if self.closed else overlaps > iou

    def rank(self, iou: float) -> Tensor:
        """Returns the rank, from 1, of the first moment whose IoU is above a threshold, else 0: int64 [Q].

        Strictly above, unless `closed`.
        """
        if iou not in self._ranks:
            hits = self.hits(self.overlaps, iou).any(dim=-1)  # [Q, n]
            first = hits.double().argmax(dim=1) + 1  # argmax is the first of equals
            self._ranks[iou] = torch.where(hits.any(dim=1), first, 0)
        return self._ranks[iou]


def recall(answers: Answers, n: int, iou: float) -> Tensor:
    """Returns R@n: 1 where one of the first n moments has an IoU above the threshold, else 0, [Q].

    Of several true moments any will do.
    """
    rank = answers.rank(iou)
    return ((rank > 0) & (rank <= n)).double()


def recall_of_all(answers: Answers, n: int, iou: float) -> Tensor:
    """Returns the share of a query's true moments that one of the first n moments hits, [Q].

    A true moment is hit where the IoU is above the threshold; one answer may hit several that overlap. R@n is 1 where
    this is above 0; with one true moment the two are equal. Of K true moments that lie apart, n < K answers hit at most
    n.
    """
    hit = answers.hits(answers.overlaps[:, :n], iou)  # [Q, n, K]
    return hit.any(dim=1).sum(dim=1) / answers.true.sum(dim=1)


def discounted_recall(answers: Answers, n: int, iou: float) -> Tensor:
    """Returns dR@n: R@n with each hit discounted by how far its ends lie from the true ones, [Q].

    Yuan et al., A Closer Look at Temporal Sentence Grounding in Videos, 2021: a hit counts (1 - |s' - s| / T)
    (1 - |e' - e| / T), where s' and e' are its ends, s and e the true ones, and T is the video's duration. So a long
    answer that is above the threshold by its length alone is worth less. The paper speaks of the hit; where several of
    the first n moments, or several true ones, make hits, the pair that counts most is taken. So dR@n never falls with n
    and never exceeds R@n.
    """
    hit = answers.hits(answers.overlaps[:, :n], iou)  # [Q, n, K]
    off = (answers.top[:, :n, None] - answers.moments[:, None]).abs() / answers.durations[:, None, None, None]
    worth = (1 - off).clamp(min=0).prod(dim=-1)  # [Q, n, K]
    return worth.where(hit, 0.0).amax(dim=(1, 2))


def first_iou(answers: Answers) -> Tensor:
    """Returns the IoU of the first moment [Q], whose mean is mIoU."""
    return answers.overlap[:, 0]


def average_precision(answers: Answers, iou: float) -> Tensor:
    """Returns AP at an IoU threshold, [Q].

    This is the average precision of QVHighlights' evaluation (Lei et al., arXiv 2107.09609, `standalone_eval` of
    moment_detr): the area under the interpolated precision-recall curve of each query, up to 10 moments. Each retrieved
    moment, best first, takes the true moment that fits it best among those not taken yet, and is right if their IoU is
    above the threshold. With one true moment that is one over the rank of the first moment above the threshold. One
    difference: an IoU equal to the threshold is no hit here, as in the recall of this field; with `closed` it is.
    """
    overlaps = answers.overlaps[:, :AP_MOMENTS]  # [Q, n, K]
    free = answers.true.clone()
    hits = torch.zeros(overlaps.shape[:2], dtype=torch.bool)
    for rank in range(hits.shape[1]):
        best, which = overlaps[:, rank].where(free, -1.0).max(dim=1)
        hits[:, rank] = answers.hits(best, iou)
        free[hits[:, rank], which[hits[:, rank]]] = False
    precision = hits.cumsum(dim=1) / torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
    ceiling = precision.flip(1).cummax(dim=1).values.flip(1)  # the highest precision at this recall or above
    return (ceiling * hits).sum(dim=1) / answers.true.sum(dim=1)


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

    def of(self, mask: NDArray[np.bool_]) -> Measures:
        """Returns what some of the queries add, under a mask [Q]."""
        return Measures(self.names, self.values[mask])

    def within(self, mask: NDArray[np.bool_]) -> Measures:
        """Returns the same queries, NaN where the mask [Q] leaves one out."""
        return Measures(self.names, np.where(mask[:, None], self.values, np.nan))


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
