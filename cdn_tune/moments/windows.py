"""Sliding windows over a video that is longer than what a model was trained on."""

import math


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
