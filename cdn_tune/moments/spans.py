"""Spans of time, their overlap, and sliding windows over a video longer than what a model was trained on.

A span is a pair (start, end) in seconds (any one unit will do), closed at both ends; the last axis of every array here.
"""

import math
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


def sliding_windows(duration: float, frames: int, window: float, stride: float) -> list[tuple[int, int]]:
    """Returns the windows' frames, [first, last) each, in order; together they cover the video.

    All are of the same length, so the last one ends with the video, and may overlap its neighbour by more than the
    others do. A moment of at most `window - stride` seconds lies whole in at least one of them (up to the rounding to
    whole frames).

    Args:
        duration: Of the video, in seconds.
        frames: How many frame features it has, at equal distances.
        window: Length of a window, in seconds; one window where the video is no longer.
        stride: From one window's start to the next one's, in seconds.

    Raises:
        ValueError: If `window` or `stride` is not positive and finite, or `stride` would leave gaps.
    """
    if not (math.isfinite(window) and window > 0):
        raise ValueError(f"window={window:g} s must be positive and finite")
    if not (math.isfinite(stride) and 0 < stride <= window):
        raise ValueError(f"stride={stride:g} s must be positive and at most window={window:g} s")
    size = max(1, round(window * frames / duration))
    if window >= duration or size >= frames:
        return [(0, frames)]
    step = min(size, max(1, round(stride * frames / duration)))
    return [(first, first + size) for first in (*range(0, frames - size, step), frames - size)]
