"""Which points are to find a query's moment, and the losses of their scores and offsets.

Shape letters: N queries, P points.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from cdn_tune.model.snag.pyramid import Points

SMOOTHING = 0.2  # targets are 0.9 and 0.1
FOCUS = 2  # exponent of the focal loss
BALANCE = 0.5  # weight of both classes
EPSILON = 1e-8


def assign(points: Points, moments: Tensor, radius: float | None) -> tuple[Tensor, Tensor]:
    """Returns which points are to find each query's moment, bool [N, P], and the offsets they should have [N, P, 2].

    A point is positive if it lies inside the moment, near its centre, and its longer offset is within its level's
    range. Several levels may have positive points, or none.

    Args:
        points: The points.
        moments: Starts and ends in steps of the first level [N, 2].
        radius: Distance from the centre, in steps of the point's level, open; None: anywhere inside.
    """
    start, end = moments[:, :1], moments[:, 1:]  # [N, 1]
    left, right = points.time - start, end - points.time  # [N, P]
    longest = torch.maximum(left, right)
    if radius is None:
        low, high = start, end
    else:
        centre = (start + end) / 2
        low = torch.maximum(centre - radius * points.stride, start)
        high = torch.minimum(centre + radius * points.stride, end)
    inside = (points.time > low) & (points.time < high)
    positive = inside & (longest >= points.low) & (longest < points.high)
    return positive, torch.stack([left, right], dim=2) / points.stride[:, None]


def focal_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Returns the focal loss of logits against smoothed labels, elementwise (Lin et al., arXiv 1708.02002)."""
    target = positive.to(logits.dtype) * (1 - SMOOTHING) + SMOOTHING / 2
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    score = torch.sigmoid(logits)
    certainty = score * target + (1 - score) * (1 - target)
    return BALANCE * entropy * (1 - certainty) ** FOCUS


def span_loss(offsets: Tensor, targets: Tensor, kind: Literal["diou", "iou"] = "diou") -> Tensor:
    """Returns 1 - IoU of spans around a common point, with `diou` plus their squared distance over their hull's length.

    Args:
        offsets: Distances to start and end, at least 0 [..., 2].
        targets: Distances wanted, of the same shape.
        kind: With or without the distance (Zheng et al., arXiv 1911.08287).

    Returns:
        One loss per span [...].
    """
    left, right = offsets.unbind(-1)
    left_wanted, right_wanted = targets.unbind(-1)
    overlap = torch.minimum(left, left_wanted) + torch.minimum(right, right_wanted)
    union = (left + right) + (left_wanted + right_wanted) - overlap
    loss = 1 - overlap / union.clamp(min=EPSILON)
    if kind == "iou":
        return loss
    distance = 0.5 * (right - left - right_wanted + left_wanted)
    hull = torch.maximum(left, left_wanted) + torch.maximum(right, right_wanted)
    return loss + (distance / hull.clamp(min=EPSILON)) ** 2
