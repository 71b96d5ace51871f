"""Attention over the clips of a video to one another, before the temporal map.

Shape letters: B batch, S clips, H hidden.
"""

import torch
from torch import Tensor, nn

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
        x = clips.transpose(1, 2)
        mask = x.new_ones(x.shape[:2], dtype=torch.bool)
        for block in self.blocks:
            x, mask = block(x, mask)
        return x.transpose(1, 2)
