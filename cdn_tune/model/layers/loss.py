"""The loss of moments: cross-entropy against rescaled IoU.

Shape letters: B batch, S clips.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Reduction = Literal["mean", "none"]


def scale_iou(iou: Tensor, min_iou: float, max_iou: float, bias: float = 0.0) -> Tensor:
    """Rescales IoU linearly so that `min_iou` becomes 0 and `max_iou` 1, clamped outside.

    With a bias whatever is above 0 becomes that much greater, and the slope that much less, so that 1 stays 1.
    """
    scaled = (iou - min_iou) / (max_iou - min_iou)
    if bias:
        scaled = scaled * (1 - bias) + bias * (scaled > 0)
    return scaled.clamp(0, 1)


def moment_loss(
    logits: Tensor,
    iou_maps: Tensor,
    mask: Tensor,
    min_iou: float,
    max_iou: float,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    bias: float = 0.0,
    saturating: bool = True,
) -> Tensor:
    """Returns the binary cross-entropy of moment scores against rescaled IoU: a scalar, or [B] with ``none``.

    In float32 at least. As published it is that of the sigmoid scores: logarithms end at -100, and a score that has
    rounded to 0 or 1 (logits beyond 17 in float32) passes no gradient back. Nothing becomes infinite.

    Args:
        logits: Logits [B, S, S], finite at invalid cells.
        iou_maps: IoU of each cell with the annotated moment [B, S, S].
        mask: True at valid cells [S, S].
        min_iou: IoU that becomes target 0.
        max_iou: IoU that becomes target 1.
        weight: Optional weight of each sample [B]; the mean is taken over samples so weighted.
        reduction: ``mean`` over samples, or ``none`` for one value per sample (mean over its valid cells).
        bias: Of the target, see `scale_iou`.
        saturating: Computed from scores, as published; if false from logits, and every logit passes a gradient.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    target = scale_iou(iou_maps, min_iou, max_iou, bias).to(dtype)
    if saturating:
        scores = torch.sigmoid(logits.to(dtype))  # [B, S, S]
        losses = functional.binary_cross_entropy(scores.nan_to_num(nan=0.5), target, reduction="none")  # refuses NaN
        losses = losses.masked_fill(scores.isnan(), torch.nan)  # NaN shows in the loss, not as an exception
    else:
        losses = functional.binary_cross_entropy_with_logits(logits.to(dtype), target, reduction="none")
    per_sample = (losses * mask).sum(dim=(1, 2)) / mask.sum()  # [B]
    return reduce(per_sample, weight, reduction)


def reduce(per_sample: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
    """Returns the mean of values [B], weighted by `weight` [B] if given; or the values themselves, weighted."""
    if reduction == "none":
        return per_sample if weight is None else per_sample * weight
    if weight is None:
        return per_sample.mean()
    return (per_sample * weight).sum() / weight.sum()
