"""The 2-D temporal map: cell (s, e) is the moment from the start of clip s to the end of clip e.

Shape letters: Q queries, S clips. Source: 2D-TAN (arXiv 1912.03590), section 3.2.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def scale_cells(clips: int, scale_layers: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Yields, layer by layer from the shortest moments to the longest, the (start, end) clips of the valid cells.

    Scale k holds `scale_layers[k]` moment lengths; both the lengths and the starts of the moments are 2**k clips apart.

    Args:
        clips: Number of clips S.
        scale_layers: Moment lengths per scale.

    Raises:
        ValueError: If the lengths do not end exactly at `clips`.
    """
    reach = sum(count << scale for scale, count in enumerate(scale_layers))
    if not scale_layers or min(scale_layers) < 1 or reach != clips:
        raise ValueError(
            f"scale_layers {list(scale_layers)} reach moments of {reach} clips, not clips={clips}; "
            "positive counts must satisfy sum(count * stride) == clips with strides 1, 2, 4, ..."
        )
    length = 0
    for scale, count in enumerate(scale_layers):
        stride = 1 << scale
        for _ in range(count):
            length += stride
            starts = range(0, clips - length + 1, stride)
            yield starts, range(length - 1, length + len(starts) * stride - 1, stride)


def valid_mask(clips: int, scale_layers: Sequence[int]) -> Tensor:
    """Returns the sparse pattern of moments that are proposals.

    Args:
        clips: Number of clips S.
        scale_layers: Moment lengths per scale, e.g. (16,) or (16, 8, 8, 8).

    Returns:
        A bool tensor [S, S] on the CPU, True where cell (s, e) is a proposal; never below the diagonal.

    Raises:
        ValueError: If the scale layers do not reach exactly `clips`.
    """
    mask = torch.zeros(clips, clips, dtype=torch.bool, device="cpu")
    for starts, ends in scale_cells(clips, scale_layers):
        mask[list(starts), list(ends)] = True
    return mask


def iou_maps(durations: Tensor, moments: Tensor, num_clips: int) -> Tensor:
    """Returns the IoU of every cell's span with each query's moment, or with the one of its moments that fits it best.

    Args:
        durations: Seconds [Q], above 0.
        moments: Start and end in seconds [Q, 2]; of several moments, NaN-padded [Q, M, 2].
        num_clips: Number of clips S.

    Returns:
        float64 [Q, S, S] on the device of `moments`; 0 below the diagonal.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if moments.ndim == 3 and moments.shape[1] > 0:
        first, *others = moments.unbind(dim=1)
        best = iou_maps(durations, first, num_clips)
        for other in others:
            best = torch.maximum(best, iou_maps(durations, other, num_clips).nan_to_num_(nan=0.0))
        return best
    if moments.ndim != 2 or moments.shape[-1] != 2 or durations.shape != moments.shape[:1]:
        raise ValueError(
            f"want durations [Q] and moments [Q, 2] or [Q, M, 2], got {[*durations.shape]} and {[*moments.shape]}"
        )
    moments, durations = moments.double(), durations.double()
    edges = torch.arange(num_clips + 1, dtype=torch.float64, device=moments.device)
    edges = edges * (durations / num_clips)[:, None]  # [Q, S + 1]
    starts, ends = edges[:, :-1, None], edges[:, None, 1:]  # [Q, S, 1], [Q, 1, S]
    start, end = moments[:, 0, None, None], moments[:, 1, None, None]  # [Q, 1, 1]
    overlap = (torch.minimum(ends, end) - torch.maximum(starts, start)).clamp_(min=0)  # [Q, S, S]
    union = (ends - starts).add_(end - start).sub_(overlap)
    return overlap.div_(union).triu_()


def iou_map(duration: float, moment: Sequence[float] | Tensor, num_clips: int) -> Tensor:
    """Returns the IoU of every cell's span with one moment: float64 [S, S]; see `iou_maps`.

    Args:
        duration: Length of the video in seconds.
        moment: Start and end in seconds.
        num_clips: Number of clips S.
    """
    pair = torch.as_tensor(moment, dtype=torch.float64)
    return iou_maps(torch.tensor([float(duration)], dtype=torch.float64), pair[None], num_clips)[0]
