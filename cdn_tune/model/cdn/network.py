"""CDN, the network that tells which moment of a video a query speaks of (Cross-modal Dynamic Networks, IEEE TMM).

Shape letters: B batch, T frames, D feature size, S clips, H hidden, L words, W word size, J attention steps.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from cdn_tune.config import ModelConfig
from cdn_tune.model.cdn.clip_pool import AttentionPool, MeanPool
from cdn_tune.model.cdn.fusion import Fusion
from cdn_tune.model.cdn.map_stack import MapStack
from cdn_tune.model.cdn.moment_map import conv_proposals, pool_proposals
from cdn_tune.model.cdn.query import QueryEncoder


class CDNOutput(NamedTuple):
    """What CDN says.

    Attributes:
        logits: One logit per cell, 0 at invalid cells [B, S, S].
        mask: True at valid cells [S, S].
        attention: Weights of the frame attention [B, S, T/S, J]; None with mean pooling.
    """

    logits: Tensor
    mask: Tensor
    attention: Tensor | None


class CDN(nn.Module):
    """The whole network.

    Args:
        config: What it is made of.
        feature_size: Size of a frame feature D.
        word_size: Size of a word vector W.
    """

    def __init__(self, config: ModelConfig, feature_size: int, word_size: int) -> None:
        super().__init__()
        hidden, clips, query = config.hidden, config.clips, config.query
        self.config, self.feature_size, self.word_size = config, feature_size, word_size
        self.query = QueryEncoder(word_size, hidden, query.layers, query.bidirectional, query.read_padding)
        self.clip_pool: nn.Module = (
            AttentionPool(feature_size, hidden, clips, config.attention_steps, config.attention_size)
            if config.clip_pool == "attention"
            else MeanPool(feature_size, hidden, clips)
        )
        self.proposals = (
            pool_proposals(clips, config.scales)
            if config.proposals == "pool"
            else conv_proposals(clips, config.scales, hidden)
        )
        self.fusion = Fusion(hidden)
        self.map = MapStack(config.map, hidden, hidden, self.proposals.mask)
        self.score = nn.Conv2d(hidden, 1, 1)

    def forward(self, visual: Tensor, words: Tensor, word_mask: Tensor) -> CDNOutput:
        """Scores every moment of each video for its query.

        Args:
            visual: Frame features [B, T, D]; S divides T.
            words: Word vectors [B, L, W], words first, then padding.
            word_mask: True or 1 where there is a word [B, L].
        """
        query = self.query(words, word_mask)  # [B, H]
        clips, attention = self.clip_pool(visual)  # [B, H, S], [B, S, T/S, J]
        logits = self.match(clips, query)  # [B, S, S]
        return CDNOutput(logits, self.proposals.mask, attention)

    def match(self, clips: Tensor, query: Tensor) -> Tensor:
        """Scores every moment for each query: what is left of `forward` once video and query are encoded.

        Args:
            clips: Clips of each query's video, as `clip_pool` gives them [B, H, S]; or of one video for all queries
                [1, H, S].
            query: Query encodings, as `query` gives them [B, H].

        Returns:
            Logits, 0 at invalid cells [B, S, S].
        """
        mask = self.proposals.mask
        moments = self.proposals(clips)  # [B, H, S, S]
        fused = self.fusion(query, moments, mask)  # [B, H, S, S]
        fused = self.map(fused, query)  # [B, H, S, S]
        logits: Tensor = self.score(fused)[:, 0] * mask  # [B, S, S]
        return logits
