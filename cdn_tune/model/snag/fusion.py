"""Fusion: the video's features are scaled and shifted by what they attend to in the text.

Shape letters: N queries, P steps of all levels with their padding, C video width, L' tokens, E text width.
"""

from torch import Tensor, nn

from cdn_tune.model.layers.cross_attention import CrossAttentionLayer
from cdn_tune.model.snag.config import FusionConfig
from cdn_tune.model.snag.pyramid import Pyramid


class Fusion(nn.Module):
    """Layers of cross-attention, then a normalisation."""

    def __init__(self, config: FusionConfig, hidden: int, text: int) -> None:
        super().__init__()
        dropouts = config.dropout, config.attention_dropout, config.path_dropout
        self.layers = nn.ModuleList(
            CrossAttentionLayer(hidden, text, config.heads, config.mode == "adaln", True, *dropouts)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(hidden)

    def forward(self, pyramid: Pyramid, text: Tensor, text_mask: Tensor) -> Pyramid:
        """Returns the fused pyramid of N queries: pyramids of their videos, tokens [N, L', E], bool mask [N, L']."""
        x = pyramid.features
        for layer in self.layers:
            x = layer(x, pyramid.mask, text, text_mask, pyramid.sizes)
        return pyramid._replace(features=self.norm(x))
