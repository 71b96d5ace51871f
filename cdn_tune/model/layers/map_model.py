"""Networks whose candidates are the cells of a temporal map: MMN, and those that fuse it with the query.

Shape letters: B batch, T frames, D feature size, S clips, H hidden, L words, W word size, J attention steps, V windows,
Q queries, M valid cells, E query encoding.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cdn_tune.model.family import Graph, Memory, MomentModel, Pictures, ScoreMap, Spans
from cdn_tune.model.layers.map_config import MapModelConfig
from cdn_tune.model.layers.moment_map import Proposals, conv_proposals, pool_proposals
from cdn_tune.moments.nms import Rounding, Suppression, cell_spans

_SLACK = 1e-9  # above the rounding of an IoU in float64, below the distance of two IoUs of whole clips
_CARD = (
    "float32 [1, {clips}, {clips}] in [0, 1]; cell (s, e) is the moment from the start of clip s to the end of clip e, "
    "0 where it is no proposal"
)


class MapModel(MomentModel):
    """A network whose candidates are the valid cells of a temporal map.

    Attributes:
        rounding: How moments become seconds; with ``none`` suppression compares whole clips, exactly.
        proposals: The temporal map; its `mask` has the valid cells.
    """

    config: MapModelConfig
    rounding: Rounding = "none"
    proposals: Proposals

    def cell_spans(self, durations: Tensor, scores: Tensor) -> Spans:
        """Returns the valid cells of videos of these durations [B], in seconds, with their scores [B, M]."""
        return Spans(cell_spans(self.proposals.by_row, self.config.clips, durations, self.rounding), scores)

    @property
    def suppression(self) -> Suppression:
        """Greedy NMS; an IoU of whole clips that equals the threshold is never above it."""
        return Suppression(slack=_SLACK if self.rounding == "none" else 0.0)

    @abstractmethod
    def score_map(self, output: Any) -> ScoreMap:
        """Returns the scores of all cells of an output."""
        raise NotImplementedError

    def pictures(self, output: Any) -> Pictures:
        """Returns the score map."""
        return Pictures(self.score_map(output))

    def graph(self) -> Graph:
        """Returns the network with scores for its output."""
        return Graph(_Scores(self), _CARD.format(clips=self.config.clips))


class MapOutput(NamedTuple):
    """What a network computes for B queries that it fuses with the map.

    Attributes:
        logits: One logit per cell, 0 at invalid cells [B, S, S].
        mask: True at valid cells [S, S].
        attention: Weights of the frame attention [B, S, T/S, J]; None without.
    """

    logits: Tensor
    mask: Tensor
    attention: Tensor | None


class FusedMapModel(MapModel):
    """A network that fuses a temporal map with the query, convolves it, and scores every cell (2D-TAN, CDN).

    Attributes:
        query: From word vectors [B, L, W] and mask [B, L] to encodings [B, E].
        clip_pool: From frame features [B, T, D] to clips [B, H, S], and frame attention or None.
        fusion: From encodings, maps and the mask of valid cells to fused maps [B, H, S, S].
        score: From maps to logits [B, 1, S, S].
    """

    query: nn.Module
    clip_pool: nn.Module
    fusion: nn.Module
    score: nn.Module

    @abstractmethod
    def convolve(self, fused: Tensor, query: Tensor, mask: Tensor) -> Tensor:
        """Convolves fused maps [B, H, S, S], for query encodings [B, E]; `mask` [S, S] holds the valid cells."""
        raise NotImplementedError

    def forward(self, visual: Tensor, words: Tensor, word_mask: Tensor) -> MapOutput:
        """Scores every moment of each video for its query.

        Args:
            visual: Frame features [B, T, D]; S divides T.
            words: Word vectors [B, L, W], words first, then padding.
            word_mask: True or 1 where there is a word [B, L].
        """
        query = self.query(words, word_mask)  # [B, E]
        clips, attention = self.clip_pool(visual)  # [B, H, S], [B, S, T/S, J]
        logits = self.match(clips, query)  # [B, S, S]
        return MapOutput(logits, self.proposals.mask, attention)

    def match(self, clips: Tensor, query: Tensor) -> Tensor:
        """Scores every moment for each query: the rest of `forward` once video and query are encoded.

        Args:
            clips: Clips of each query's video, as `clip_pool` gives them [B, H, S]; or of one video for all queries
                [1, H, S].
            query: Query encodings, as `query` gives them [B, E].

        Returns:
            Logits, 0 at invalid cells [B, S, S].
        """
        mask = self.proposals.mask
        moments = self.proposals(clips)  # [B, H, S, S]
        fused = self.fusion(query, moments, mask)  # [B, H, S, S]
        fused = self.convolve(fused, query, mask)  # [B, H, S, S]
        logits: Tensor = self.score(fused)[:, 0] * mask  # [B, S, S]
        return logits

    def encode(self, *video: Tensor) -> Tensor:
        """Returns the clips [V, H, S] of windows' frame features [V, T, D]."""
        clips: Tensor = self.clip_pool(*video)[0]
        return clips

    def answer(self, encoded: Tensor, *query: Tensor) -> list[MapOutput]:
        """Scores every moment of each window for Q queries, given as word vectors and mask; without attention."""
        encoding = self.query(*query)  # [Q, E]
        return [MapOutput(self.match(clips[None], encoding), self.proposals.mask, None) for clips in encoded]

    def spans(self, output: MapOutput, durations: Tensor) -> Spans:
        """Returns the valid cells, row by row; their scores are the sigmoid of their logits."""
        logits = output.logits.float().flatten(1)[:, self.proposals.by_row]
        return self.cell_spans(durations, torch.sigmoid(logits).masked_fill(~logits.isfinite(), torch.nan))

    def score_map(self, output: MapOutput) -> ScoreMap:
        """Returns the sigmoid of the logits."""
        return ScoreMap(torch.sigmoid(output.logits.float()), output.mask)

    def pictures(self, output: MapOutput) -> Pictures:
        """Returns score map and frame attention."""
        attention = None if output.attention is None else output.attention.float().flatten(1, 2).transpose(1, 2)
        return Pictures(self.score_map(output), attention)


def build_proposals(config: MapModelConfig, first: bool = True) -> Proposals:
    """Returns the temporal map that a configuration asks for; `first` is as for `conv_proposals`."""
    if config.proposals == "pool":
        return pool_proposals(config.clips, config.scales)
    return conv_proposals(config.clips, config.scales, config.hidden, first)


def map_memory(config: MapModelConfig, kernel_sizes: Sequence[int], feature_size: int, frames: int) -> Memory:
    """Returns generous counts of the bytes that a network with `MapConvs` takes; see `MomentModel.memory`."""
    side = config.clips + 2 * sum(size // 2 for size in kernel_sizes)
    maps = side**2 * config.hidden
    video = frames * (4 * feature_size + 8 * config.hidden)
    return Memory(4 * (8 * maps * (len(kernel_sizes) + 2) + video), 4 * 4 * maps, 0)


class _Scores(nn.Module):
    """One video and one query to the scores of all moments, in [0, 1], 0 at cells that are no proposals [1, S, S]."""

    def __init__(self, model: MapModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        found = self.model.score_map(self.model(features, words, word_mask))
        return found.scores * found.mask
