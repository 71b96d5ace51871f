"""A transformer encoder block over padded sequences, which may halve their length.

Shape letters: B batch, T time steps, C channels.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.model.layers.attention import Attention
from cdn_tune.model.layers.feed_forward import FeedForward
from cdn_tune.model.layers.masked_conv import MaskedConv
from cdn_tune.model.layers.residual import ResidualScale


class EncoderBlock(nn.Module):
    """Self-attention, then a feed-forward branch, both after a normalisation and scaled.

    Args:
        channels: Channels C.
        heads: Attention heads.
        stride: 0: queries, keys and values are linears of the input. 1 or 2: each has a convolution of its own before,
            with this stride; with 2 the skip connection is a maximum over neighbours.
        window: Of local attention, odd; 0: attention to all.
        dropout: Probability after output and feed-forward layers.
        attention_dropout: Probability on the attention weights.
        path_dropout: Probability of stochastic depth.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        stride: Literal[0, 1, 2] = 0,
        window: int = 0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        path_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels)
        self.convs = nn.ModuleDict()
        self.conv_norms = nn.ModuleDict()
        for part in ("query", "key", "value") if stride else ():
            self.convs[part] = MaskedConv(channels, channels, 3, stride, groups=channels)
            self.conv_norms[part] = nn.LayerNorm(channels)
        self.attention = Attention(channels, heads, window=window, dropout=dropout, attention_dropout=attention_dropout)
        self.attention_scale = ResidualScale(channels, path_dropout)
        self.feed_forward_norm = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels, dropout)
        self.feed_forward_scale = ResidualScale(channels, path_dropout)
        self.stride = stride

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns sequences [B, T', C] and their mask [B, T'] of x [B, T, C] and a bool mask [B, T]; T' = T / stride.

        Padded steps of the output hold left-overs.
        """
        x = x * mask[..., None]
        skip = masked_max_pool(x, mask) if self.stride == 2 else x
        y = self.attention_norm(x)
        parts, kept = {}, mask
        for part, conv in self.convs.items():
            convolved, kept = conv(y, mask)
            parts[part] = self.conv_norms[part](convolved)
        attended = self.attention(parts.get("query", y), parts.get("key", y), parts.get("value", y), kept)
        x = skip * kept[..., None] + self.attention_scale(attended)
        branch = self.feed_forward(self.feed_forward_norm(x)) * kept[..., None]
        return x + self.feed_forward_scale(branch), kept


def masked_max_pool(x: Tensor, mask: Tensor) -> Tensor:
    """Returns the maximum over every second step and its two neighbours, [B, T / 2, C], of real steps only.

    A window without real steps has the sample's minimum, through which no gradient flows.

    Args:
        x: [B, T, C], 0 at padded steps.
        mask: True at real steps, bool [B, T].
    """
    lowest = x.detach().amin(dim=1, keepdim=True)  # [B, 1, C]
    filled = torch.where(mask[..., None], x, lowest)
    return functional.max_pool1d(filled.transpose(1, 2), 3, 2, 1).transpose(1, 2)
