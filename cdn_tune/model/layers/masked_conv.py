"""Convolution of padded sequences.

Shape letters: B batch, T time steps, C channels in, O channels out, K kernel size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class MaskedConv(nn.Module):
    """Convolves sequences [B, T, C] of which some steps are padding: they count as zeros, like what is outside.

    Args:
        channels: Channels in C.
        out: Channels out O.
        kernel_size: Odd kernel size K; K // 2 zeros are added at both sides.
        stride: Distance of the steps that are kept; it must divide T.
        groups: 1, or C for a convolution of each channel by itself.
        bias: Whether there is one; it starts at 0.
    """

    def __init__(
        self, channels: int, out: int, kernel_size: int, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> None:
        super().__init__()
        drawn = nn.Conv1d(channels, out, kernel_size, groups=groups, bias=False)
        self.weight = drawn.weight  # [O, C / groups, K]
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None
        self.stride, self.groups = stride, groups

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the sequence [B, T / stride, O] and its mask [B, T / stride], given x [B, T, C] and a bool mask.

        Raises:
            ValueError: If the stride does not divide T.
        """
        steps, side = x.shape[1], self.weight.shape[2] // 2
        if steps % self.stride:
            raise ValueError(
                f"{steps} steps cannot be taken every {self.stride}; "
                f"pad them to {-(-steps // self.stride) * self.stride}"
            )
        # In two dimensions, of which one is 1: torch computes these where they lie, channels last, and copies others;
        # several times as fast on a CPU.
        image = (x * mask[..., None]).transpose(1, 2)[:, :, None]  # [B, C, 1, T]
        convolved = functional.conv2d(
            image, self.weight[:, :, None], self.bias, self.stride, (0, side), groups=self.groups
        )
        return convolved[:, :, 0].transpose(1, 2), mask[:, :: self.stride]
