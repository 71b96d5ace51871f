"""Clips: a video's frame features, normalised and averaged to a fixed length."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

EPSILON = 1e-12


def to_fixed_length(
    features: npt.NDArray[np.floating] | torch.Tensor, length: int, legacy: bool = False
) -> torch.Tensor:
    """Returns frame features, each L2-normalised, averaged to a fixed number of rows.

    Row i is the mean of frames round(i*N/length) to round((i+1)*N/length) (open end); where the two are equal, because
    there are fewer frames than rows, it is the frame there. Halves are rounded to even.

    Args:
        features: Frame features [N, D], N >= 1, any float type.
        length: Number of rows T to return.
        legacy: Clamp every boundary to N-1 as the published code does, which leaves the last frame out of the last
            row's mean (unless that row is the last frame alone).

    Returns:
        float32 [T, D] on the CPU. A frame of zeros stays zero.

    Raises:
        ValueError: If `features` is not 2-D or has no frame, or `length` is below 1.
    """
    frames = np.asarray(features.detach().cpu() if isinstance(features, torch.Tensor) else features, dtype=np.float32)
    if frames.ndim != 2 or not len(frames):
        raise ValueError(f"features must be [frames, size] with at least one frame, not {list(frames.shape)}")
    if length < 1:
        raise ValueError(f"length={length} must be at least 1")
    count = len(frames)
    norms = np.sqrt(np.einsum("nd,nd->n", frames, frames))
    frames = frames / np.maximum(norms, EPSILON)[:, None]

    bounds = np.rint(np.arange(length + 1) * count / length).astype(np.int64)
    starts = np.minimum(bounds, count - 1)
    # reduceat sums frames[start:next start], or takes frames[start] where that is empty; a last start sums to the end.
    if legacy:
        sums = np.add.reduceat(frames, starts, axis=0)[:-1]
        sizes = np.diff(starts)
    else:
        sums = np.add.reduceat(frames, starts[:-1], axis=0)
        sizes = bounds[1:] - starts[:-1]
    return torch.from_numpy(sums / np.maximum(sizes, 1).astype(np.float32)[:, None])
