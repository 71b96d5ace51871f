"""Spans of time and their overlap.

A span is a pair (start, end) in seconds (any one unit will do), closed at both ends; the last axis of every array here.
"""

from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Spans = TypeVar("Spans", Tensor, NDArray[np.floating])


def iou(first: Spans, second: Spans) -> Spans:
    """Returns the intersection over union of spans, broadcasting the leading axes.

    Args:
        first: Spans [..., 2], numpy or torch; start <= end is the caller's business.
        second: Spans [..., 2] of the same kind.

    Returns:
        IoU [...] in [0, 1], in the dtype of the operands; 0 where the union is empty, NaN where a span is NaN.

    Raises:
        ValueError: If a last axis is not 2.
    """
    for spans in (first, second):
        if spans.shape[-1] != 2:
            raise ValueError(f"spans need a last axis of 2 (start, end), got shape {tuple(spans.shape)}")
    if isinstance(first, Tensor):
        other = torch.as_tensor(second)
        inter = torch.minimum(first[..., 1], other[..., 1]) - torch.maximum(first[..., 0], other[..., 0])
        inter = inter.clamp(min=0)
        union = (first[..., 1] - first[..., 0]) + (other[..., 1] - other[..., 0]) - inter
        return torch.where(union == 0, torch.zeros_like(inter), inter / union)
    right, left = np.minimum(first[..., 1], second[..., 1]), np.maximum(first[..., 0], second[..., 0])
    inter_np = np.maximum(right - left, 0)
    union_np = (first[..., 1] - first[..., 0]) + (second[..., 1] - second[..., 0]) - inter_np
    empty = union_np == 0
    return cast(Spans, np.where(empty, 0, inter_np / np.where(empty, 1, union_np)))
