"""The losses: scaled-IoU cross-entropy of moments, and diversity of the frame attention.

Shape letters: B batch, S clips, F frames per clip, J attention steps.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Reduction = Literal["mean", "none"]


def scale_iou(iou: Tensor, min_iou: float, max_iou: float) -> Tensor:
    """Rescales IoU linearly so that `min_iou` becomes 0 and `max_iou` 1, clamped outside."""
    return ((iou - min_iou) / (max_iou - min_iou)).clamp(0, 1)


def moment_loss(
    logits: Tensor,
    iou_maps: Tensor,
    mask: Tensor,
    min_iou: float,
    max_iou: float,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Returns the binary cross-entropy of moment scores against rescaled IoU: a scalar, or [B] with ``none``.

    As published, of the sigmoid scores, in float32 at least: logarithms end at -100, and a score that has rounded to 0
    or 1 (logits beyond 17 in float32) passes no gradient back. Nothing becomes infinite.

    Args:
        logits: Logits [B, S, S], finite at invalid cells.
        iou_maps: IoU of each cell with the annotated moment [B, S, S].
        mask: True at valid cells [S, S].
        min_iou: IoU that becomes target 0.
        max_iou: IoU that becomes target 1.
        weight: Optional weight of each sample [B]; the mean is taken over samples so weighted.
        reduction: ``mean`` over samples, or ``none`` for one value per sample (mean over its valid cells).
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    target = scale_iou(iou_maps, min_iou, max_iou).to(dtype)
    scores = torch.sigmoid(logits.to(dtype))  # [B, S, S]
    losses = functional.binary_cross_entropy(scores.nan_to_num(nan=0.5), target, reduction="none")  # refuses NaN
    losses = losses.masked_fill(scores.isnan(), torch.nan)  # NaN shows in the loss, not as an exception
    per_sample = (losses * mask).sum(dim=(1, 2)) / mask.sum()  # [B]
    return _reduce(per_sample, weight, reduction)


def attention_loss(
    attention: Tensor, attention_lambda: float, weight: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Returns the attention-diversity loss: the squared Frobenius norm of A Aᵀ - λ I, averaged over clips.

    A [F, J] are the weights that the J steps give to the frames of one clip: `attention` [B, S, F, J]. Weight,
    reduction and result are as in `moment_loss`; β is not applied.
    """
    weights = attention.to(torch.promote_types(attention.dtype, torch.float32))
    gram = weights @ weights.transpose(2, 3)  # [B, S, F, F]
    target = attention_lambda * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    per_sample = (gram - target).square().sum(dim=(2, 3)).mean(dim=1)  # [B]
    return _reduce(per_sample, weight, reduction)


def _reduce(per_sample: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return per_sample if weight is None else per_sample * weight
    if weight is None:
        return per_sample.mean()
    return (per_sample * weight).sum() / weight.sum()
