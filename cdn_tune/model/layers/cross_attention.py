"""Cross-attention of a video to a text: features are scaled and shifted by what they attend to in the words.

Shape letters: N queries, P time steps, C channels, L words, E size of a word's encoding, S clips.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.model.layers.attention import Attention
from cdn_tune.model.layers.feed_forward import FeedForward
from cdn_tune.model.layers.masked_conv import MaskedConv
from cdn_tune.model.layers.residual import ResidualScale


class CrossAttentionLayer(nn.Module):
    """One layer of cross-attention and a feed-forward branch (SnAG, arXiv 2404.02257).

    Args:
        channels: Channels of the video C.
        text: Size of a word's encoding E.
        heads: Attention heads, which divide C.
        normalised: Scale and shift normalised features (``adaln``), not the features as they are (``affine``).
        conv: Whether a convolution of each channel and a normalisation precede the queries.
        dropout: Probability after output and feed-forward layers.
        attention_dropout: Probability on the attention weights.
        path_dropout: Probability of stochastic depth.
    """

    def __init__(
        self,
        channels: int,
        text: int,
        heads: int,
        normalised: bool = False,
        conv: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        path_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.video_norm = nn.LayerNorm(channels)
        self.text_norm = nn.LayerNorm(text)
        self.conv = MaskedConv(channels, channels, 3, groups=channels) if conv else None
        self.conv_norm = nn.LayerNorm(channels) if conv else None
        self.attention = Attention(
            channels, heads, text, 2 * channels, dropout=dropout, attention_dropout=attention_dropout
        )
        self.feed_forward_norm = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels, dropout)
        self.feed_forward_scale = ResidualScale(channels, path_dropout)
        self.normalised = normalised

    def forward(self, x: Tensor, mask: Tensor, text: Tensor, text_mask: Tensor, groups: Sequence[int] = ()) -> Tensor:
        """Returns features [N, P, C].

        Args:
            x: Features [N, P, C].
            mask: True at real steps, bool [N, P].
            text: Encodings of words [N, L, E].
            text_mask: True at words, bool [N, L].
            groups: Numbers of steps that stochastic depth drops together; all of them if empty.
        """
        x = x * mask[..., None]
        words = self.text_norm(text)
        attended = self.attention(self._query(x, mask), words, words, text_mask)  # [N, P, 2C]
        scale, shift = attended.chunk(2, dim=2)
        if self.normalised:
            x = functional.layer_norm(x, x.shape[2:])
        x = x * scale + shift
        branch = self.feed_forward(self.feed_forward_norm(x)) * mask[..., None]
        added: Tensor = x + self.feed_forward_scale(branch, groups)
        return added

    def weights(self, x: Tensor, mask: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Returns how much each step attends to each word, mean of the heads [N, P, L]; arguments as of `forward`."""
        return self.attention.weights(self._query(x * mask[..., None], mask), self.text_norm(text), text_mask)

    def _query(self, x: Tensor, mask: Tensor) -> Tensor:
        query: Tensor = self.video_norm(x)
        if self.conv is not None and self.conv_norm is not None:
            query, _ = self.conv(query, mask)
            query = self.conv_norm(query)
        return query


class CrossAttention(nn.Module):
    """Layers of cross-attention, then a normalisation.

    Args:
        layers: How many.
        channels: Channels of the video C.
        text: Size of a word's encoding E.
        settings: What else `CrossAttentionLayer` takes.
    """

    def __init__(self, layers: int, channels: int, text: int, *settings: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CrossAttentionLayer(channels, text, *settings) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, mask: Tensor, text: Tensor, text_mask: Tensor, groups: Sequence[int] = ()) -> Tensor:
        """Returns features [N, P, C]; the arguments are those of `CrossAttentionLayer`."""
        for layer in self.layers:
            x = layer(x, mask, text, text_mask, groups)
        normalised: Tensor = self.norm(x)
        return normalised

    def weights(self, x: Tensor, mask: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Returns how much each step attends to each word, mean of layers and heads [N, P, L]; arguments as above."""
        found = []
        for layer in self.layers:
            found.append(cast(CrossAttentionLayer, layer).weights(x, mask, text, text_mask))
            x = layer(x, mask, text, text_mask)
        return torch.stack(found).mean(dim=0)
