"""The losses: scaled-IoU cross-entropy of moments, which other families share, and diversity of the frame attention.

Shape letters: B batch, S clips, F frames per clip, J attention steps.
"""

import torch
from torch import Tensor

from cdn_tune.model.layers.loss import Reduction, moment_loss, reduce, scale_iou

__all__ = ["attention_loss", "moment_loss", "scale_iou"]


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
    return reduce(per_sample, weight, reduction)
