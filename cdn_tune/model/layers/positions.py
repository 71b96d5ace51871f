"""Sinusoidal positions.

Shape letters: B batch, T time steps, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def sinusoids(steps: int, channels: int) -> Tensor:
    """Returns positions [T, C] on the CPU: sines of t / 10000^(2k / C), then as many cosines, all divided by √C.

    Source: Vaswani et al. (arXiv 1706.03762), section 3.5, halves instead of pairs.
    """
    rates = 10000.0 ** (torch.arange(channels // 2, dtype=torch.float64, device="cpu") / (channels // 2))
    angles = torch.arange(steps, dtype=torch.float64, device="cpu")[:, None] / rates  # [T, C / 2]
    return (torch.cat([angles.sin(), angles.cos()], dim=1) / channels**0.5).float()


class Positions(nn.Module):
    """Adds sinusoids to sequences of up to a number of steps; longer ones stretch the table, but not in training.

    Args:
        steps: Length of the table.
        channels: Even number of channels C.
    """

    table: Tensor

    def __init__(self, steps: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("table", sinusoids(steps, channels), persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns sequences [B, T, C] with positions added where the bool mask [B, T] is true.

        Raises:
            ValueError: If a sequence is longer than the table in training.
        """
        steps, table = x.shape[1], self.table
        if steps > len(table):
            if self.training:
                raise ValueError(
                    f"a sequence of {steps} steps is longer than the table of {len(table)} positions; shorten it"
                )
            stretched = functional.interpolate(table.T[None], size=steps, mode="linear", align_corners=True)
            table = stretched[0].T
        return x + table[:steps].to(x.dtype) * mask[..., None]
