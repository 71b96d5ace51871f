"""Recall at IoU and mean IoU of retrieved moments.

Shape letters: Q queries, S clips, n moments returned per query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdn_tune.moments.nms import top_moments
from cdn_tune.moments.spans import iou

Array = Tensor | NDArray[np.generic]


@dataclass(frozen=True)
class Metrics:
    """How well moments were retrieved.

    Attributes:
        recall: Share of queries with a moment of IoU above the threshold among the first n: float64 [recalls, ious].
        miou: Mean IoU of the best-scored moment, over queries.
    """

    recall: Tensor
    miou: float


@dataclass(frozen=True)
class Evaluation(Metrics):
    """Metrics together with the moments they were measured on.

    Attributes:
        top: Spans in seconds, best first, NaN where a query has fewer: float64 [Q, max(recalls), 2].
    """

    top: Tensor


def measure(top: Array, moments: Array, recalls: Sequence[int], ious: Sequence[float]) -> Metrics:
    """Returns recall and mean IoU of retrieved moments.

    Args:
        top: Retrieved spans in seconds, best first, NaN-padded [Q, n, 2] with n >= max(recalls).
        moments: Annotated spans in seconds [Q, 2].
        recalls: The n of R@n.
        ious: IoU thresholds; a moment counts when its IoU is strictly above.

    Raises:
        ValueError: If there is no query, or the shapes do not fit.
    """
    best, truth = _cpu64(top), _cpu64(moments)
    if len(best) == 0:
        raise ValueError("no queries to measure: the query set is empty")
    if best.ndim != 3 or best.shape[-1] != 2 or truth.shape != (len(best), 2):
        raise ValueError(f"want top [Q, n, 2] and moments [Q, 2], got {[*best.shape]} and {[*truth.shape]}")
    if not recalls or min(recalls) < 1 or max(recalls) > best.shape[1]:
        raise ValueError(f"recalls {list(recalls)} must lie between 1 and the {best.shape[1]} moments per query")
    overlap = iou(best, truth[:, None, :]).nan_to_num(nan=0.0)  # [Q, n]; a missing answer overlaps nothing
    hits = overlap[:, :, None] > torch.tensor(list(ious), dtype=torch.float64)  # [Q, n, ious]
    recall = torch.stack([hits[:, :n].any(dim=1).double().mean(dim=0) for n in recalls])
    return Metrics(recall=recall, miou=float(overlap[:, 0].mean()))


def evaluate(
    scores: Array,
    durations: Array,
    moments: Array,
    *,
    recalls: Sequence[int],
    ious: Sequence[float],
    nms_threshold: float,
    valid: Array | None = None,
) -> Evaluation:
    """Returns the metrics of score maps: top moments after suppression, then recall and mean IoU.

    Args:
        scores: Score maps [Q, S, S], higher is better; cells below the diagonal are never answers.
        durations: Seconds [Q].
        moments: Annotated spans in seconds [Q, 2].
        recalls: The n of R@n.
        ious: IoU thresholds.
        nms_threshold: IoU above which the lesser of two moments is dropped.
        valid: Optional bool [S, S]: cells that may be answers; see `top_moments`. Give it with raw logits, whose masked
            cells hold 0.

    Raises:
        ValueError: If there is no query, the shapes do not fit, or a score is NaN (names the first such query).
    """
    maps = torch.as_tensor(scores)
    if len(maps) == 0:
        raise ValueError("no queries to measure: the query set is empty")
    broken = maps.isnan().flatten(1).any(dim=1)
    if bool(broken.any()):
        raise ValueError(f"scores of query {int(broken.nonzero()[0])} (counted from 0) are not numbers (NaN)")
    if not recalls:
        raise ValueError("recalls is empty; give at least one n of R@n")
    mask = None if valid is None else torch.as_tensor(valid)
    top, _ = top_moments(maps, torch.as_tensor(durations), max(recalls), nms_threshold, mask)
    metrics = measure(top, moments, recalls, ious)
    return Evaluation(recall=metrics.recall, miou=metrics.miou, top=top.cpu())


def _cpu64(array: Array) -> Tensor:
    return torch.as_tensor(array).detach().to("cpu", torch.float64)
