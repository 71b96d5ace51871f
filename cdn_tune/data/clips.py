"""Clips: a video's frame features, normalised and averaged to a fixed length."""

from collections.abc import Callable

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
    return resample(lambda first, last: frames[first:last], len(frames), length, legacy, at_once=len(frames))


def resample(
    read: Callable[[int, int], npt.NDArray[np.float32]], count: int, length: int, legacy: bool, at_once: int
) -> torch.Tensor:
    """Returns what `to_fixed_length` does, of frames that are read in blocks, so that memory stays bounded.

    Args:
        read: Returns frames [first, last) as float32 [last - first, D]; they are not changed.
        count: Number of frames N >= 1.
        length: Number of rows T to return.
        legacy: As for `to_fixed_length`.
        at_once: Frames to read at once, more only where a single row is the mean of more.

    Raises:
        ValueError: If `length` is below 1.
    """
    if length < 1:
        raise ValueError(f"length={length} must be at least 1")
    bounds = np.rint(np.arange(length + 1) * count / length).astype(np.int64)
    starts = np.minimum(bounds, count - 1)
    # Row i is the mean of frames [starts[i], ends[i]), at least one; the last row's sum reaches to the end.
    ends = starts[1:] if legacy else np.append(starts[1:-1], count)
    ends = np.maximum(ends, starts[:-1] + 1)
    sizes = np.diff(starts) if legacy else bounds[1:] - starts[:-1]
    blocks = []
    row = 0
    while row < length:
        last = max(row + 1, int(np.searchsorted(ends, starts[row] + at_once, side="right")))
        frames = read(int(starts[row]), int(ends[last - 1]))
        norms = np.sqrt(np.einsum("nd,nd->n", frames, frames))
        frames = frames / np.maximum(norms, EPSILON)[:, None]
        # reduceat sums frames[start:next start], or takes frames[start] where that is empty.
        blocks.append(np.add.reduceat(frames, starts[row:last] - starts[row], axis=0))
        row = last
    sums = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    return torch.from_numpy(sums / np.maximum(sizes, 1).astype(np.float32)[:, None])
