"""The convolution stack over the temporal map, static or dynamic layer by layer.

Shape letters: B batch, C channels (the hidden size), S clips, Q query size, N layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.config import MapConfig
from cdn_tune.model.dynamic_conv import DynamicConv2d
from cdn_tune.model.norm import MapNorm


class MapStack(nn.Module):
    """N layers of normalisation, convolution with residual, ReLU and a weight map; a normalisation at the end.

    A convolution near the edge of the valid cells sees fewer of them; the weight map, 1 / (number of valid cells under
    the kernel), makes up for it. A cell that the kernel reaches becomes valid for the next layer; all others are 0.

    Args:
        config: The stack's settings.
        channels: Channels C.
        query_size: Size of the query encoding Q.
        mask: Valid cells [S, S] of the stack's input.
    """

    mask: Tensor
    weight_maps: Tensor

    def __init__(self, config: MapConfig, channels: int, query_size: int, mask: Tensor) -> None:
        super().__init__()
        self.residual = config.residual
        self.convs = nn.ModuleList(
            DynamicConv2d(channels, size, query_size, config.experts, config.mixing, config.mixing_dropout)
            if dynamic
            else nn.Conv2d(channels, channels, size, padding=size // 2)
            for size, dynamic in zip(config.kernel_sizes, config.dynamic, strict=True)
        )
        norms = len(self.convs) + 1 if config.batch_norm else 0
        self.norms = nn.ModuleList(MapNorm(channels, config.norm_over) for _ in range(norms))
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("weight_maps", weight_maps(mask, config.kernel_sizes), persistent=False)

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        """Convolves a map [B, C, S, S], 0 at invalid cells, for queries [B, Q]: [B, C, S, S]."""
        for index, conv in enumerate(self.convs):
            x = self._norm(index, x)
            out = conv(x, query) if isinstance(conv, DynamicConv2d) else conv(x)
            x = torch.relu(out + x if self.residual else out) * self.weight_maps[index]
        return self._norm(len(self.convs), x)

    def _norm(self, index: int, x: Tensor) -> Tensor:
        return self.norms[index](x, self.mask) if len(self.norms) else x


def weight_maps(mask: Tensor, kernel_sizes: tuple[int, ...]) -> Tensor:
    """Returns each layer's weight map [N, S, S]: 1 / (number of valid cells under its kernel), 0 where there is none.

    Args:
        mask: Valid cells [S, S] of the first layer's input.
        kernel_sizes: Odd kernel size of each layer.
    """
    valid = mask[None, None].double()
    maps = []
    for size in kernel_sizes:
        count = functional.avg_pool2d(valid, size, stride=1, padding=size // 2, divisor_override=1).round()
        valid = (count > 0).double()
        maps.append(torch.where(count > 0, 1 / count.clamp(min=1), 0.0)[0, 0].float())
    return torch.stack(maps)
