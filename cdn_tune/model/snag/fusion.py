"""Fusion: the video's features are scaled and shifted by what they attend to in the text.

Shape letters: N queries, P steps of all levels with their padding, C video width, L' tokens, E text width.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.model.layers.attention import Attention
from cdn_tune.model.layers.feed_forward import FeedForward
from cdn_tune.model.layers.masked_conv import MaskedConv
from cdn_tune.model.layers.residual import ResidualScale
from cdn_tune.model.snag.config import FusionConfig
from cdn_tune.model.snag.pyramid import Pyramid


class Fusion(nn.Module):
    """Layers of cross-attention, then a normalisation."""

    def __init__(self, config: FusionConfig, hidden: int, text: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(config, hidden, text) for _ in range(config.layers))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, pyramid: Pyramid, text: Tensor, text_mask: Tensor) -> Pyramid:
        """Returns the fused pyramid of N queries: pyramids of their videos, tokens [N, L', E], bool mask [N, L']."""
        x = pyramid.features
        for layer in self.layers:
            x = layer(x, pyramid.mask, text, text_mask, pyramid.sizes)
        return pyramid._replace(features=self.norm(x))


class FusionLayer(nn.Module):
    """One layer of cross-attention and a feed-forward branch."""

    def __init__(self, config: FusionConfig, hidden: int, text: int) -> None:
        super().__init__()
        self.video_norm = nn.LayerNorm(hidden)
        self.text_norm = nn.LayerNorm(text)
        self.conv = MaskedConv(hidden, hidden, 3, groups=hidden)
        self.conv_norm = nn.LayerNorm(hidden)
        self.attention = Attention(
            hidden,
            config.heads,
            text,
            2 * hidden,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
        )
        self.feed_forward_norm = nn.LayerNorm(hidden)
        self.feed_forward = FeedForward(hidden, config.dropout)
        self.feed_forward_scale = ResidualScale(hidden, config.path_dropout)
        self.normalised = config.mode == "adaln"

    def forward(self, x: Tensor, mask: Tensor, text: Tensor, text_mask: Tensor, groups: Sequence[int] = ()) -> Tensor:
        """Returns features [N, P, C]; `groups` are the steps that stochastic depth drops together."""
        x = x * mask[..., None]
        query, _ = self.conv(self.video_norm(x), mask)
        tokens = self.text_norm(text)
        attended = self.attention(self.conv_norm(query), tokens, tokens, text_mask)  # [N, P, 2C]
        scale, shift = attended.chunk(2, dim=2)
        if self.normalised:
            x = functional.layer_norm(x, x.shape[2:])
        x = x * scale + shift
        branch = self.feed_forward(self.feed_forward_norm(x)) * mask[..., None]
        added: Tensor = x + self.feed_forward_scale(branch, groups)
        return added
