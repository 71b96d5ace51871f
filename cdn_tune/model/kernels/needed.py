"""The cells of a map at which a convolution is needed: most kernels leave out the others.

Shape letters: S clips.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Needed(NamedTuple):
    """Output cells of a convolution that are needed, on the device of the maps.

    Attributes:
        mask: Those cells [S, S].
        outputs: Their places, row by row [n], int32.
        inputs: The places of the cells that their kernels see [m], int32.
    """

    mask: Tensor
    outputs: Tensor
    inputs: Tensor


def needed(mask: Tensor, kernel: int) -> Needed:
    """Lists the needed cells of a convolution; waits for a GPU, so that it is not called in a step.

    Args:
        mask: The needed output cells [S, S], bool.
        kernel: Kernel size, odd.
    """
    seen = functional.max_pool2d(mask[None].float(), kernel, stride=1, padding=kernel // 2)[0] > 0
    return Needed(mask, *(each.flatten().nonzero().flatten().to(torch.int32) for each in (mask, seen)))
