"""The pyramid of video features, and its points.

Shape letters: B videos, T input steps, D feature size, C width, L levels, P_l steps of level l, P = Σ P_l.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.model.layers.encoder_block import EncoderBlock
from cdn_tune.model.layers.linear import linear
from cdn_tune.model.layers.masked_conv import MaskedConv
from cdn_tune.model.layers.positions import Positions
from cdn_tune.model.snag.config import PointConfig, VideoConfig


class Pyramid(NamedTuple):
    """Levels laid end to end, each followed by one step of padding.

    What is shared by all levels runs once over them: convolutions of three steps see zeros at a level's ends, as they
    would see at the ends of a sequence.

    Attributes:
        features: [B, P + L, C].
        mask: True at real steps, bool [B, P + L].
        sizes: Steps of each level, its padding included: P_l + 1.
    """

    features: Tensor
    mask: Tensor
    sizes: tuple[int, ...]

    def rows(self, index: Tensor) -> "Pyramid":
        """Returns the pyramids of some videos, in the order of `index` [N]."""
        return Pyramid(self.features[index], self.mask[index], self.sizes)

    def split(self, x: Tensor) -> list[Tensor]:
        """Returns the levels [., P_l, ...] of a tensor over all steps [., P + L, ...], without padding."""
        return [level[:, :-1] for level in torch.split(x, list(self.sizes), dim=1)]


def join(levels: Sequence[Tensor], masks: Sequence[Tensor]) -> Pyramid:
    """Returns the pyramid of levels [B, P_l, C] and bool masks [B, P_l]."""
    features = torch.cat([functional.pad(level, (0, 0, 0, 1)) for level in levels], dim=1)
    mask = torch.cat([functional.pad(mask, (0, 1)) for mask in masks], dim=1)
    return Pyramid(features, mask, tuple(level.shape[1] + 1 for level in levels))


class VideoEncoder(nn.Module):
    """Convolutions, then transformer blocks of which all but the first halve the length; each is a level."""

    def __init__(self, config: VideoConfig, feature_size: int) -> None:
        super().__init__()
        hidden, halvings = config.hidden, int(math.log2(config.stride))
        self.multiple = config.stride * 2 ** (config.levels - 1)
        self.embed = linear(feature_size, hidden)
        self.convs = nn.ModuleList(
            MaskedConv(hidden, hidden, 5, 2) if index < halvings else MaskedConv(hidden, hidden, 3)
            for index in range(config.convs)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(config.convs))
        self.positions = Positions(config.length, hidden, config.coarsest) if config.positions else None
        self.stem = nn.ModuleList(_block(config, 1) for _ in range(config.stem))
        self.levels = nn.ModuleList(_block(config, 1 if level == 0 else 2) for level in range(config.levels))

    def forward(self, video: Tensor, mask: Tensor) -> Pyramid:
        """Returns the pyramid of frame features [B, T, D] with a bool mask [B, T]; they are padded as levels demand."""
        fill = -video.shape[1] % self.multiple
        video, mask = functional.pad(video, (0, 0, 0, fill)), functional.pad(mask, (0, fill))
        x = self.embed(video * mask[..., None])  # [B, T, C]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x, mask = conv(x, mask)
            x = torch.relu(norm(x))
        if self.positions is not None:
            x = self.positions(x, mask)
        for block in self.stem:
            x, mask = block(x, mask)
        levels, masks = [], []
        for block in self.levels:
            x, mask = block(x, mask)
            levels.append(x)
            masks.append(mask)
        return join(levels, masks)


def _block(config: VideoConfig, stride: int) -> EncoderBlock:
    return EncoderBlock(
        config.hidden,
        config.heads,
        2 if stride == 2 else 1,
        config.window,
        config.dropout,
        config.attention_dropout,
        config.path_dropout,
    )


class Points(NamedTuple):
    """The candidate centres of P moments, in steps of the first level.

    Attributes:
        time: Where each lies [P].
        low: Shortest longer offset of a moment it is to find [P].
        high: That offset's end, open [P].
        stride: Unit of its offsets [P].
    """

    time: Tensor
    low: Tensor
    high: Tensor
    stride: Tensor


def points(sizes: Sequence[int], config: PointConfig, length: int, device: torch.device | None = None) -> Points:
    """Returns the points of levels of P_l steps, level by level: at every step of a level, its left edge.

    Args:
        sizes: P_l of every level.
        config: The levels' ranges.
        length: Steps of the first level in training, which the last level's range reaches beyond.
        device: Where the points lie.
    """
    columns: list[list[Tensor]] = []
    low, high = 0.0, config.first_range
    for level, size in enumerate(sizes):
        stride = float(2**level)
        end = max(high, length + 1.0) if level == len(sizes) - 1 else high
        time = torch.arange(size, dtype=torch.float32, device=device) * stride
        columns.append([time, *(torch.full_like(time, value) for value in (low, end, stride))])
        low, high = high * config.overlap, high * 2
    return Points(*(torch.cat(column) for column in zip(*columns, strict=True)))
