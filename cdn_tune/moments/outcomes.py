"""What each query adds to the metrics: IoU of its first moment, and at which rank its answer was found.

Shape letters: Q queries, n moments returned per query, M metrics.

Every metric is a mean over queries of a number per query, so that intervals and tests need nothing else:

- R@n, IoU=m: 1 where one of the first n moments has an IoU above m;
- mIoU: the IoU of the first moment;
- AP at IoU m: one over the rank of the first moment with an IoU above m, 0 where there is none. This is the average
  precision of QVHighlights' evaluation (Lei et al., arXiv 2107.09609, `standalone_eval` of moment_detr: area under the
  interpolated precision-recall curve of each query, up to 10 moments) for a query with one true moment: recall steps
  from 0 to 1 at that rank, where precision is one over it; a later overlapping moment counts as wrong. One difference:
  an IoU equal to m is no hit here, as in the recall of this field; there it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdn_tune.moments.metrics import Array
from cdn_tune.moments.spans import iou

AP_MOMENTS = 10  # of QVHighlights' evaluation
AP_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))  # what its mean AP averages over


@dataclass(frozen=True)
class Outcomes:
    """How well each query was answered.

    Attributes:
        iou: IoU of the first moment with the truth, 0 without one: float64 [Q].
        rank: Rank, from 1, of the first moment whose IoU is above each threshold, 0 where there is none: int64
            [Q, ious].
        ious: The thresholds.
    """

    iou: Tensor
    rank: Tensor
    ious: tuple[float, ...]

    def recall(self, count: int, threshold: float) -> Tensor:
        """Returns R@count at an IoU threshold, per query, 0 or 1: float64 [Q]."""
        rank = self._rank(threshold)
        return ((rank > 0) & (rank <= count)).double()

    def average_precision(self, threshold: float) -> Tensor:
        """Returns AP at an IoU threshold, per query, in [0, 1]: float64 [Q]."""
        rank = self._rank(threshold)
        return torch.where((rank > 0) & (rank <= AP_MOMENTS), 1.0 / rank.clamp(min=1).double(), 0.0)

    def mean_average_precision(self) -> Tensor:
        """Returns the mean of AP over `AP_IOUS`, which must be among the thresholds, per query: float64 [Q]."""
        return torch.stack([self.average_precision(threshold) for threshold in AP_IOUS]).mean(dim=0)

    def _rank(self, threshold: float) -> Tensor:
        if threshold not in self.ious:
            raise ValueError(f"IoU {threshold} is not among those measured, {list(self.ious)}")
        return self.rank[:, self.ious.index(threshold)]


def outcomes(top: Array, moments: Array, ious: Sequence[float]) -> Outcomes:
    """Returns how well each query was answered.

    Args:
        top: Retrieved spans in seconds, best first, NaN-padded [Q, n, 2]. Of equal scores the first counts first.
        moments: Annotated spans in seconds [Q, 2].
        ious: Thresholds; a moment is a hit when its IoU is strictly above.

    Raises:
        ValueError: If there is no query, or the shapes do not fit.
    """
    best = torch.as_tensor(top).detach().to("cpu", torch.float64)
    truth = torch.as_tensor(moments).detach().to("cpu", torch.float64)
    if len(best) == 0:
        raise ValueError("no queries to measure: the query set is empty")
    if best.ndim != 3 or best.shape[-1] != 2 or best.shape[1] < 1 or truth.shape != (len(best), 2):
        raise ValueError(f"want top [Q, n, 2] and moments [Q, 2], got {[*best.shape]} and {[*truth.shape]}")
    overlap = iou(best, truth[:, None, :]).nan_to_num(nan=0.0)  # [Q, n]
    hits = overlap[:, :, None] > torch.tensor(list(ious), dtype=torch.float64)  # [Q, n, ious]
    first = hits.double().argmax(dim=1) + 1  # argmax is the first of equals
    rank = torch.where(hits.any(dim=1), first, 0)
    return Outcomes(overlap[:, 0].contiguous(), rank, tuple(ious))
