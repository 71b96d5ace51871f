"""The heads: a score and two offsets of every point.

Shape letters: N queries, P steps of all levels with their padding, C width.
"""

import math

import torch
from torch import Tensor, nn

from cdn_tune.model.layers.masked_conv import MaskedConv
from cdn_tune.model.snag.config import HeadConfig
from cdn_tune.model.snag.pyramid import Pyramid


class Head(nn.Module):
    """Convolutions, each normalised and rectified, and one to the output.

    Args:
        channels: Channels C.
        layers: Convolutions before the last.
        out: Numbers per step.
    """

    def __init__(self, channels: int, layers: int, out: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(MaskedConv(channels, channels, 3) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(layers))
        self.out = MaskedConv(channels, out, 3, bias=True)

    def forward(self, pyramid: Pyramid) -> Tensor:
        """Returns numbers [N, P, out]."""
        x = pyramid.features
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x, pyramid.mask)[0]))
        numbers: Tensor = self.out(x, pyramid.mask)[0]
        return numbers


class ScoreHead(Head):
    """Logits of the points."""

    def __init__(self, config: HeadConfig, channels: int) -> None:
        super().__init__(channels, config.score_layers, 1)
        if config.prior > 0 and self.out.bias is not None:
            nn.init.constant_(self.out.bias, -math.log((1 - config.prior) / config.prior))


class OffsetHead(Head):
    """Distances from a point to its moment's start and end, in steps of its level."""

    def __init__(self, config: HeadConfig, channels: int, levels: int) -> None:
        super().__init__(channels, config.offset_layers, 2)
        self.level_scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in range(levels))

    def forward(self, pyramid: Pyramid) -> Tensor:
        """Returns offsets [N, P, 2], at least 0."""
        numbers = super().forward(pyramid)
        levels = zip(self.level_scales, pyramid.sizes, strict=True)
        scales = torch.cat([scale.expand(size) for scale, size in levels])  # [P]
        return torch.relu(numbers * scales[:, None])
