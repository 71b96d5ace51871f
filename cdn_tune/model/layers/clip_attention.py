"""Attention over the clips of a video, before the temporal map: to one another, and to the words of a query.

Shape letters: B batch, Q queries, S clips, H hidden, L words, E size of a word's encoding.
"""

import torch
from torch import Tensor, nn

from cdn_tune.model.layers.cross_attention import CrossAttentionLayer
from cdn_tune.model.layers.encoder_block import EncoderBlock
from cdn_tune.model.layers.map_config import CrossAttentionConfig


class ClipStem(nn.Module):
    """Blocks of self-attention within a window, with convolutions before, which tell neighbours apart."""

    def __init__(self, hidden: int, config: CrossAttentionConfig) -> None:
        super().__init__()
        dropouts = config.dropout, config.attention_dropout, config.path_dropout
        self.blocks = nn.ModuleList(
            EncoderBlock(hidden, config.heads, 1, config.window, *dropouts) for _ in range(config.stem)
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Returns clips [B, H, S] of clips [B, H, S]."""
        x, mask = clips.transpose(1, 2), _all(clips)
        for block in self.blocks:
            x, mask = block(x, mask)
        return x.transpose(1, 2)


class CrossAttention(nn.Module):
    """Layers in which clips are scaled and shifted by what they attend to in the words, then a normalisation."""

    def __init__(self, hidden: int, text: int, config: CrossAttentionConfig) -> None:
        super().__init__()
        dropouts = config.dropout, config.attention_dropout, config.path_dropout
        self.layers = nn.ModuleList(
            CrossAttentionLayer(hidden, text, config.heads, config.mode == "adaln", False, *dropouts)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(hidden)

    def forward(self, clips: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Returns clips [Q, H, S] for queries.

        Args:
            clips: Of each query's video [Q, H, S], or of one for all queries [1, H, S].
            words: Encodings of the queries' words [Q, L, E].
            word_mask: True at words, bool [Q, L].
        """
        x = clips.transpose(1, 2).expand(len(words), -1, -1)
        mask = _all(x.transpose(1, 2))
        for layer in self.layers:
            x = layer(x, mask, words, word_mask)
        normalised: Tensor = self.norm(x)
        return normalised.transpose(1, 2)


def _all(clips: Tensor) -> Tensor:
    """Returns a mask of all steps, bool [B, S], of clips [B, H, S]."""
    return torch.ones(clips.shape[0], clips.shape[2], dtype=torch.bool, device=clips.device)
