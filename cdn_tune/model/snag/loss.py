"""Which points are to find a query's moment, and the loss of their scores.

Shape letters: N queries, P points.
"""

import torch
from torch import Tensor
from torch.nn import functional

from cdn_tune.model.snag.pyramid import Points

SMOOTHING = 0.2  # targets are 0.9 and 0.1
FOCUS = 2  # exponent of the focal loss
BALANCE = 0.5  # weight of both classes


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
