"""MMN's loss of the IoU score (arXiv 2109.04872); its contrastive ones are shared.

Shape letters: B queries, M valid cells.
"""

from torch import Tensor
from torch.nn import functional

from cdn_tune.model.layers.loss import scale_iou


def iou_loss(logits: Tensor, ious: Tensor, min_iou: float, max_iou: float) -> Tensor:
    """Returns the mean cross-entropy of the scores of logits [B, M] with rescaled IoU [B, M]."""
    return functional.binary_cross_entropy_with_logits(logits, scale_iou(ious, min_iou, max_iou).to(logits.dtype))
