"""Boundary offsets: how far the ends of a cell's moment lie from the clips' ends.

Shape letters: B batch, M valid cells, K moments that answer a query, H hidden, S clips.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.model.layers.span_loss import span_loss
from cdn_tune.moments.spans import iou


def offset_layer(hidden: int) -> nn.Conv2d:
    """Returns the layer from maps [B, H, S, S] to offsets of start and end [B, 2, S, S]; at first all are 0."""
    layer = nn.Conv2d(hidden, 2, 1)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def moved(spans: Tensor, offsets: Tensor) -> Tensor:
    """Returns spans [B, M, 2] with each end moved by an offset [B, M, 2], in lengths of the span; the lesser first."""
    ends = spans + (spans[..., 1:] - spans[..., :1]) * offsets
    return torch.stack([ends.amin(dim=-1), ends.amax(dim=-1)], dim=-1)


def offset_loss(offsets: Tensor, cells: Tensor, moments: Tensor, kind: str, min_iou: float) -> Tensor:
    """Returns the loss of moved cells against the moments they overlap, a mean over queries.

    Of each query it is the mean over its positive cells, those whose IoU with a moment (of several, the best) is at
    least `min_iou`; 0 if it has none. Ends that lie outside of the video are not cut here, or no gradient would move
    them back.

    Args:
        offsets: Offsets in lengths of the cell [B, M, 2].
        cells: Spans of the cells, as shares of the video [M, 2].
        moments: Spans of the true moments, as shares of the video, NaN-padded [B, K, 2].
        kind: `diou`: 1 - IoU + squared distance of the centres over the hull's length; `l1giou`: 1 - generalised IoU,
            and the smooth L1 distance of the offsets, a mean over both ends.
        min_iou: The least IoU.
    """
    overlaps = iou(cells[None, :, None], moments[:, None]).nan_to_num(nan=-1.0)  # [B, M, K]
    best, index = overlaps.max(dim=2)  # [B, M]
    target = moments.gather(1, index[..., None].expand(-1, -1, 2))  # [B, M, 2]
    positive = (best >= min_iou) & (target[..., 1] > target[..., 0])  # an empty moment has none
    sign = torch.arange(-1, 2, 2, dtype=cells.dtype, device=cells.device)  # -1, 1
    found = moved(cells, offsets)  # distances from the video's start
    if kind == "diou":
        losses = span_loss(found * sign, target * sign, "diou")
    else:
        wanted = (target - cells) / (cells[:, 1:] - cells[:, :1])
        losses = functional.smooth_l1_loss(offsets, wanted, reduction="none").mean(dim=2)
        losses = losses + span_loss(found * sign, target * sign, "giou")
    return ((losses * positive).sum(dim=1) / positive.sum(dim=1).clamp(min=1)).mean()
