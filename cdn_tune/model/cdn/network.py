"""CDN, a network that scores the moments of a video for a query (Cross-modal Dynamic Networks, IEEE TMM).

Shape letters: B batch, T frames, D feature size, S clips, H hidden, L words, W word size, J attention steps.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.model.cdn.clip_pool import AttentionPool, MeanPool
from cdn_tune.model.cdn.config import CDNConfig, CDNLoss
from cdn_tune.model.cdn.loss import attention_loss, moment_loss
from cdn_tune.model.cdn.map_stack import MapStack
from cdn_tune.model.cdn.memory import working_memory
from cdn_tune.model.cdn.moment_map import conv_proposals, pool_proposals
from cdn_tune.model.cdn.query import QueryEncoder
from cdn_tune.model.family import Batch, Graph, Losses, Memory, MomentModel, Pictures, ScoreMap, Spans
from cdn_tune.moments.nms import cell_spans
from cdn_tune.moments.temporal_map import iou_maps, valid_mask

_CARD = (
    "float32 [1, {clips}, {clips}] in [0, 1]; cell (s, e) is the moment from the start of clip s to the end of clip e, "
    "0 where it is no proposal"
)


class CDNOutput(NamedTuple):
    """What CDN computes for B queries.

    Attributes:
        logits: One logit per cell, 0 at invalid cells [B, S, S].
        mask: True at valid cells [S, S].
        attention: Weights of the frame attention [B, S, T/S, J]; None with mean pooling.
    """

    logits: Tensor
    mask: Tensor
    attention: Tensor | None


class CDN(MomentModel):
    """The whole network, for frame features of size D and word vectors of size W."""

    config: CDNConfig
    loss_names = ("moment_loss", "attention_loss")

    def __init__(self, config: CDNConfig, feature_size: int, word_size: int, loss: CDNLoss | None = None) -> None:
        super().__init__()
        hidden, clips, query = config.hidden, config.clips, config.query
        self.config, self.feature_size, self.word_size = config, feature_size, word_size
        self.loss_config = loss or CDNLoss()
        self.most_spans, self.reads_padding = clips**2, query.read_padding
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
        self.map = MapStack(config.map, hidden, hidden, valid_mask(clips, config.scales))
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
        """Scores every moment for each query: the rest of `forward` once video and query are encoded.

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
        fused = self.map(fused, query, mask)  # [B, H, S, S]
        logits: Tensor = self.score(fused)[:, 0] * mask  # [B, S, S]
        return logits

    def encode(self, *video: Tensor) -> Tensor:
        """Returns the clips [V, H, S] of windows' frame features [V, T, D]."""
        clips: Tensor = self.clip_pool(*video)[0]
        return clips

    def answer(self, encoded: Tensor, *query: Tensor) -> list[CDNOutput]:
        """Scores every moment of each window for Q queries, given as word vectors and mask; without attention."""
        encoding = self.query(*query)  # [Q, H]
        return [CDNOutput(self.match(clips[None], encoding), self.proposals.mask, None) for clips in encoded]

    def loss(self, output: CDNOutput, batch: Batch) -> Losses:
        """Returns moment loss + β attention loss; the latter is 0 with mean pooling."""
        config = self.loss_config
        targets = iou_maps(batch.durations, batch.all_moments, self.config.clips)  # [B, S, S]
        moment = moment_loss(output.logits.float(), targets.float(), output.mask, config.min_iou, config.max_iou)
        if output.attention is None:
            attention = moment.new_zeros(())
        else:
            attention = attention_loss(output.attention.float(), config.attention_lambda)
        parts = {"moment_loss": moment, "attention_loss": attention}
        return Losses(moment + config.attention_beta * attention, parts)

    def spans(self, output: CDNOutput, durations: Tensor) -> Spans:
        """Returns the valid cells, row by row; their scores are the sigmoid of their logits."""
        clips = self.config.clips
        cells = output.mask.flatten().nonzero()[:, 0]  # [P]
        logits = output.logits.float().flatten(1)[:, cells]
        scores = torch.sigmoid(logits).masked_fill(~logits.isfinite(), torch.nan)
        return Spans(cell_spans(cells, clips, durations), scores)

    def pictures(self, output: CDNOutput) -> Pictures:
        """Returns score map and frame attention."""
        attention = None if output.attention is None else output.attention.float().flatten(1, 2).transpose(1, 2)
        return Pictures(ScoreMap(torch.sigmoid(output.logits.float()), output.mask), attention)

    def memory(self, frames: int, batch: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """Returns an estimate of training's working memory."""
        return working_memory(self.config, self.feature_size, frames, batch, dtype, device)

    def graph(self) -> Graph:
        """Returns the network with scores for its output."""
        return Graph(_Scores(self), _CARD.format(clips=self.config.clips))


class Fusion(nn.Module):
    """Multiplies a linear of the query with a 1x1 convolution of the map, and normalises over H."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden)
        self.moment = nn.Conv2d(hidden, hidden, 1)

    def forward(self, query: Tensor, moments: Tensor, mask: Tensor) -> Tensor:
        """Returns the fused map [B, H, S, S] of queries [B, H], maps [B, H, S, S] and the mask of valid cells [S, S].

        It is of unit length over H at valid cells and 0 elsewhere.
        """
        product = self.query(query)[:, :, None, None] * self.moment(moments)
        return functional.normalize(product, dim=1) * mask


class _Scores(nn.Module):
    """One video and one query to the scores of all moments, in [0, 1], 0 at cells that are no proposals [1, S, S]."""

    def __init__(self, model: CDN) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        output = self.model(features, words, word_mask)
        scores: Tensor = torch.sigmoid(output.logits) * output.mask
        return scores
