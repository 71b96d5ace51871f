"""Sinusoidal positions.

Shape letters: B batch, T time steps, C channels.
"""

import torch
from torch import Tensor, nn


def sinusoids(steps: int, channels: int) -> Tensor:
    """Returns positions [T, C] on the CPU: sines of t / 10000^(2k / C), then as many cosines, all divided by √C.

    Source: Vaswani et al. (arXiv 1706.03762), section 3.5, halves instead of pairs.
    """
    rates = 10000.0 ** (torch.arange(channels // 2, dtype=torch.float64, device="cpu") / (channels // 2))
    angles = torch.arange(steps, dtype=torch.float64, device="cpu")[:, None] / rates  # [T, C / 2]
    table: Tensor = torch.cat([angles.sin(), angles.cos()], dim=1) / channels**0.5
    return table.float()


class Positions(nn.Module):
    """Adds sinusoids to sequences of up to a number of steps; longer ones stretch the table, but not in training.

    Args:
        steps: Length of the table.
        channels: Even number of channels C.
        multiple: Stretched to a sequence's own length, rounded up to a multiple of this, whatever its padding.
    """

    table: Tensor

    def __init__(self, steps: int, channels: int, multiple: int = 1) -> None:
        super().__init__()
        self.multiple = multiple
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
            lengths = -(-mask.sum(dim=1, keepdim=True) // self.multiple) * self.multiple  # [B, 1]
            table = _stretched(table, steps, lengths)
        else:
            table = table[:steps]
        return x + table.to(x.dtype) * mask[..., None]


def _stretched(table: Tensor, steps: int, lengths: Tensor) -> Tensor:
    """Returns positions [B, T, C] of sequences of these lengths [B, 1]: linear between the rows of a shorter table."""
    last = len(table) - 1
    rate = torch.where(lengths > len(table), last / (lengths - 1).clamp(min=1), 1.0)  # [B, 1]
    place = (torch.arange(steps, device=table.device) * rate).clamp(max=last)  # [B, T]
    below = place.long().clamp(max=max(last - 1, 0))
    share = (place - below)[..., None]
    return table[below] * (1 - share) + table[(below + 1).clamp(max=last)] * share
