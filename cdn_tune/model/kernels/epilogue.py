"""What follows a convolution of the temporal map, which some kernels compute before they store its result.

Shape letters: B batch, C channels, S clips.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Epilogue(NamedTuple):
    """The end of a layer: the convolution's input is added, then ReLU and a factor per cell.

    Attributes:
        factors: The factors [S, S], none of them negative.
        residual: Whether the input is added.
    """

    factors: Tensor
    residual: bool

    def after(self, out: Tensor, x: Tensor) -> Tensor:
        """Returns maps [B, C, S, S] of a convolution's result and its input, in passes of their own over the maps."""
        out = out + x if self.residual else out
        return torch.relu(out * self.factors)
