"""Losses of spans: one minus their overlap, with or without how far apart they are."""

from typing import Literal

import torch
from torch import Tensor

EPSILON = 1e-8


def span_loss(offsets: Tensor, targets: Tensor, kind: Literal["iou", "diou", "giou"] = "diou") -> Tensor:
    """Returns 1 - IoU of spans; with `diou` plus the square of the distance of their centres over their hull's length.

    With `giou` plus the share of their hull that neither covers.

    Args:
        offsets: Distances from a point to start and end [..., 2], negative where the start lies behind the point, or
            the end before it; no span ends before it starts.
        targets: Distances wanted, from the same point, of the same shape.
        kind: What is added (Zheng et al., arXiv 1911.08287; Rezatofighi et al., arXiv 1902.09630).

    Returns:
        One loss per span [...].
    """
    left, right = offsets.unbind(-1)
    left_wanted, right_wanted = targets.unbind(-1)
    overlap = (torch.minimum(left, left_wanted) + torch.minimum(right, right_wanted)).clamp(min=0)
    union = (left + right) + (left_wanted + right_wanted) - overlap
    loss = 1 - overlap / union.clamp(min=EPSILON)
    if kind == "iou":
        return loss
    hull = (torch.maximum(left, left_wanted) + torch.maximum(right, right_wanted)).clamp(min=EPSILON)
    if kind == "giou":
        return loss + (hull - union) / hull
    distance = 0.5 * (right - left - right_wanted + left_wanted)
    return loss + (distance / hull) ** 2
