"""Networks whose candidates are the cells of a temporal map: MMN, and those that fuse it with the query.

Shape letters: B batch, T frames, D feature size, S clips, H hidden, L words, W word size, J attention steps, V windows,
Q queries, M valid cells, E query encoding, E' word encoding.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.errors import ConfigError
from cdn_tune.model.family import Graph, Losses, Memory, MomentModel, Pictures, Rows, ScoreMap, Spans
from cdn_tune.model.layers.clip_attention import ClipStem
from cdn_tune.model.layers.contrast import Matching, MutualMatching, contrastive_losses, distinct
from cdn_tune.model.layers.cross_attention import CrossAttention
from cdn_tune.model.layers.fusion import Fusion
from cdn_tune.model.layers.map_config import FusedMapConfig, FusedMapLoss, MapModelConfig
from cdn_tune.model.layers.moment_map import Ends, Proposals, conv_proposals, pool_proposals
from cdn_tune.model.layers.offsets import moved, offset_layer, offset_loss
from cdn_tune.model.layers.query import QueryEncoder
from cdn_tune.moments.nms import Rounding, Suppression, cell_spans
from cdn_tune.moments.temporal_map import iou_maps

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
        offsets: Of start and end of the valid cells, row by row, in lengths of the cell [B, M, 2]; None without.
        matching: Embeddings of moments and queries before their fusion; None without.
        coarser: The same of maps of fewer clips.
    """

    logits: Tensor
    mask: Tensor
    attention: Tensor | None = None
    offsets: Tensor | None = None
    matching: Matching | None = None
    coarser: tuple["MapOutput", ...] = ()

    @property
    def maps(self) -> tuple["MapOutput", ...]:
        """This and the coarser ones."""
        return (self, *self.coarser)

    @property
    def clips(self) -> int:
        """Clips of the map S."""
        return len(self.mask)


class EncodedQuery(NamedTuple):
    """Queries as they are encoded: as a whole [B, E], and word by word [B, L, E'] with a mask, true at words [B, L]."""

    whole: Tensor
    words: Tensor
    word_mask: Tensor


class FusedMapModel(MapModel):
    """A network that fuses a temporal map with the query, convolves it, and scores every cell (2D-TAN, CDN).

    Attributes:
        query: From word vectors [B, L, W] and mask [B, L] to encodings [B, E], and of words [B, L, E'].
        clip_pool: From frame features [B, T, D] to clips [B, H, S], and frame attention or None.
        fusion: From encodings, maps and the mask of valid cells to fused maps [B, H, S, S].
        score: From maps to logits [B, 1, S, S].
        stem: Self-attention over the clips; None without.
        cross_attention: From clips and words to clips; None without.
        ends: From maps and clips to maps; None without.
        coarser: Temporal maps of half as many clips, of a quarter, and so on; with the layers of the first.
        matching: Embeddings of moments and queries; None without.
        offset: From maps to boundary offsets [B, 2, S, S]; None without.
    """

    config: FusedMapConfig
    loss_config: FusedMapLoss
    query: QueryEncoder
    clip_pool: nn.Module
    fusion: Fusion
    score: nn.Module
    stem: ClipStem | None
    cross_attention: CrossAttention | None
    ends: Ends | None
    coarser: nn.ModuleList
    matching: MutualMatching | None
    offset: nn.Module | None

    def add_switches(self) -> None:
        """Adds the parts of the switches that are on; called last, so that all others start with the same weights."""
        config, names = self.config, list(self.loss_names)
        attention = config.cross_attention
        self.stem = ClipStem(config.hidden, attention) if attention.stem else None
        settings = attention.heads, attention.mode == "adaln", False
        dropouts = attention.dropout, attention.attention_dropout, attention.path_dropout
        self.cross_attention = (
            CrossAttention(attention.layers, config.hidden, self.query.word_states, *settings, *dropouts)
            if attention.layers
            else None
        )
        self.ends = None if config.ends == "none" else Ends(config.hidden, config.ends)
        self.coarser = nn.ModuleList(Proposals(clips, scales, ()) for clips, scales in config.maps[1:])
        self.most_spans = sum(clips**2 for clips, _ in config.maps)
        whole = self.fusion.query.in_features
        self.matching = MutualMatching(config.hidden, whole, config.joint) if config.contrastive else None
        self.offset = None if config.offsets == "none" else offset_layer(config.hidden)
        # Which queries have the same video, as contrast reads them, decides on shapes.
        self.static_step = not (config.contrastive or self.reads_padding)
        if self.matching is not None:
            names += ["loss_vid", "loss_sent"]
        if self.offset is not None:
            names.append("offset_loss")
        self.loss_names = tuple(names)

    @abstractmethod
    def convolve(self, fused: Tensor, query: Tensor, mask: Tensor, scale: int) -> Tensor:
        """Convolves fused maps [B, H, S, S], for query encodings [B, E].

        `mask` [S, S] holds the valid cells, `scale` is the number of the map, from 0, the finest.
        """
        raise NotImplementedError

    def forward(self, visual: Tensor, words: Tensor, word_mask: Tensor, videos: Tensor | None = None) -> MapOutput:
        """Scores every moment of each video for its query.

        Args:
            visual: Frame features [B, T, D]; S divides T.
            words: Word vectors [B, L, W], words first, then padding.
            word_mask: True or 1 where there is a word [B, L].
            videos: A number for each query's video [B], which mutual matching tells them by; without, each query has a
                video of its own.
        """
        clips, attention = self.pool(visual)  # [B, H, S], [B, S, T/S, J]
        return self.match(clips, self.read(words, word_mask), videos)._replace(attention=attention)

    def read(self, words: Tensor, word_mask: Tensor) -> EncodedQuery:
        """Returns the encodings of queries: word vectors [B, L, W] and mask [B, L]."""
        states, whole = self.query.read(words, word_mask)
        return EncodedQuery(whole, states, word_mask.bool())

    def pool(self, visual: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns clips [B, H, S] of frame features [B, T, D], and frame attention or None; whatever the query."""
        clips, attention = self.clip_pool(visual)
        return clips if self.stem is None else self.stem(clips), attention

    def match(self, clips: Tensor, query: EncodedQuery, videos: Tensor | None = None) -> MapOutput:
        """Scores every moment for each query: the rest of `forward` once video and query are encoded.

        Args:
            clips: Clips of each query's video, as `pool` gives them [B, H, S]; or of one video for all queries
                [1, H, S].
            query: The queries, as `read` gives them.
            videos: As for `forward`.
        """
        before = clips  # what a moment is matched by knows no query
        if self.cross_attention is not None:
            clips = self.cross_attention(*_attending(clips, query)).transpose(1, 2)  # [B, H, S]
        outputs = []
        for scale, proposals in enumerate(self._all_proposals()):
            coarse = functional.avg_pool1d(clips, 2**scale) if scale else clips
            output = self._score(scale, proposals, coarse, query)
            if self.matching is not None:
                coarse = functional.avg_pool1d(before, 2**scale) if scale else before
                output = output._replace(matching=self._matched(self.matching, proposals, coarse, query, videos))
            outputs.append(output)
        finest, *coarser = outputs
        return finest._replace(coarser=tuple(coarser))

    def _all_proposals(self) -> list[Proposals]:
        """Returns the temporal maps, the finest first."""
        return [self.proposals, *(cast(Proposals, each) for each in self.coarser)]

    def _moments(self, proposals: Proposals, clips: Tensor) -> Tensor:
        """Returns one temporal map [B, H, S, S] of clips [B, H, S]."""
        moments: Tensor = proposals(clips, self.proposals.layers)
        return moments if self.ends is None else self.ends(moments, clips)

    def _score(self, scale: int, proposals: Proposals, clips: Tensor, query: EncodedQuery) -> MapOutput:
        """Scores the moments of one map; arguments as of `match`."""
        mask = proposals.mask
        moments = self._moments(proposals, clips)  # [B, H, S, S]
        fused = self.fusion(query.whole, moments, mask)  # [B, H, S, S]
        fused = self.convolve(fused, query.whole, mask, scale)  # [B, H, S, S]
        logits = self.score(fused)[:, 0] * mask  # [B, S, S]
        offsets = None
        if self.offset is not None:
            offsets = self.offset(fused).flatten(2)[..., proposals.by_row].transpose(1, 2)  # [B, M, 2]
        return MapOutput(logits, mask, offsets=offsets)

    def _matched(
        self, matching: MutualMatching, proposals: Proposals, clips: Tensor, query: EncodedQuery, videos: Tensor | None
    ) -> Matching:
        """Matches the moments of one map with the queries; arguments as of `match`."""
        if len(clips) == 1:  # one video for all queries
            first, rows = None, torch.zeros(len(query.whole), dtype=torch.int64, device=clips.device)
        else:
            first, rows = distinct(videos, len(clips), clips.device)
        moments = self._moments(proposals, clips if first is None else clips[first])
        matched: Matching = matching(moments.flatten(2)[..., proposals.by_row], query.whole, rows)
        return matched._replace(videos=videos if self.training else None)

    def switch_losses(self, output: MapOutput, durations: Tensor, moments: Tensor) -> Losses:
        """Returns the weighted sum of the switches' losses, and each by name.

        Args:
            output: Of B queries.
            durations: Seconds [B].
            moments: Start and end of the moments that answer each query, in seconds, NaN-padded [B, K, 2].
        """
        parts: dict[str, Tensor] = {}
        for each, proposals in zip(output.maps, self._all_proposals(), strict=True):
            for name, value in self._map_losses(each, proposals, durations, moments).items():
                parts[name] = parts[name] + value if name in parts else value
        contrast = self.loss_config.contrastive_weight
        weights = {"loss_vid": contrast, "loss_sent": contrast, "offset_loss": self.loss_config.offset_weight}
        total = output.logits.new_zeros((), dtype=torch.float32)
        for name, value in parts.items():
            total = total + weights[name] * value
        return Losses(total, parts)

    def _map_losses(
        self, output: MapOutput, proposals: Proposals, durations: Tensor, moments: Tensor
    ) -> dict[str, Tensor]:
        """Returns the switches' losses of one map by name; arguments as of `switch_losses`."""
        parts: dict[str, Tensor] = {}
        if output.matching is not None:
            ious = iou_maps(durations, moments, output.clips).flatten(1)[:, proposals.by_row]  # [B, M]
            parts |= contrastive_losses(output.matching, ious.float(), moments[:, 0], self.loss_config)
        if output.offsets is not None:
            unit = torch.ones(1, dtype=torch.float64, device=durations.device)
            cells = cell_spans(proposals.by_row, output.clips, unit, "none")[0].float()  # [M, 2]
            shares = (moments / durations[:, None, None]).float()  # [B, K, 2]
            offsets, kind, least = output.offsets.float(), self.config.offsets, self.loss_config.offset_iou
            parts["offset_loss"] = offset_loss(offsets, cells, shares, kind, least)
        return parts

    def encode(self, *video: Tensor) -> Tensor:
        """Returns the clips [V, H, S] of windows' frame features [V, T, D]."""
        return self.pool(*video)[0]

    def answer(self, encoded: Tensor, *query: Tensor) -> list[MapOutput]:
        """Scores every moment of each window for Q queries, given as word vectors and mask; without attention."""
        read = self.read(*query)
        return [self.match(clips[None], read) for clips in encoded]

    def spans(self, output: MapOutput, durations: Tensor) -> Spans:
        """Returns the valid cells of all maps, row by row, moved by their offsets and cut to the video.

        Their scores are the sigmoid of their logits, times the contrastive score where there is one.
        """
        found = [
            self._spans(each, proposals, durations)
            for each, proposals in zip(output.maps, self._all_proposals(), strict=True)
        ]
        return Spans(
            torch.cat([each.spans for each in found], dim=1), torch.cat([each.scores for each in found], dim=1)
        )

    def _spans(self, output: MapOutput, proposals: Proposals, durations: Tensor) -> Spans:
        """Returns the candidates of one map; see `spans`."""
        logits = output.logits.float().flatten(1)[:, proposals.by_row]
        spans = cell_spans(proposals.by_row, output.clips, durations, self.rounding)
        scores = torch.sigmoid(logits).masked_fill(~logits.isfinite(), torch.nan)
        if output.matching is not None:
            scores = scores * output.matching.scores(self.config.score_power)
        if output.offsets is None:
            return Spans(spans, scores)
        offsets = output.offsets.double()  # [B, M, 2]
        cut = moved(spans, offsets).clamp(min=0).minimum(durations.double()[:, None, None])
        return Spans(cut, scores.masked_fill(~offsets.isfinite().all(dim=2), torch.nan))

    def score_map(self, output: MapOutput) -> ScoreMap:
        """Returns the scores of the finest map's cells: the sigmoid of the logits, times the contrastive score."""
        scores = torch.sigmoid(output.logits.float())
        if output.matching is not None:
            scores = scores * self.proposals.spread(output.matching.scores(self.config.score_power))
        return ScoreMap(scores, output.mask)

    def graph(self) -> Graph:
        """Returns the network with scores for its output; raises a `ConfigError` where scores are not the answer."""
        lacking = {
            "offsets": ("the scores of the map alone, not the offsets of its ends", self.offset is not None),
            "map_scales": ("the scores of one map, not of several", len(self.coarser) > 0),
        }
        for key, (what, is_on) in lacking.items():
            if is_on:
                raise ConfigError(
                    f"model.{key}={getattr(self.config, key)}: a graph has {what}; export without --onnx and "
                    "--torch-export"
                )
        return super().graph()

    def pictures(self, output: MapOutput) -> Pictures:
        """Returns score map and frame attention."""
        attention = None if output.attention is None else output.attention.float().flatten(1, 2).transpose(1, 2)
        return Pictures(self.score_map(output), attention)

    def rows(self, output: MapOutput, *inputs: Tensor) -> tuple[Rows, ...]:  # noqa: ARG002 - what it does not keep
        """Returns how much clips attend to each word, where there is cross-attention."""
        if self.cross_attention is None:
            return ()
        visual, words, word_mask = inputs[:3]
        weights = self.cross_attention.weights(*_attending(self.pool(visual)[0], self.read(words, word_mask)))
        return (Rows("Attention to the words", weights.float().unbind(2)),)


def _attending(clips: Tensor, query: EncodedQuery) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns what `CrossAttention` takes, of clips [B, H, S] or [1, H, S] and B queries."""
    x = clips.transpose(1, 2).expand(len(query.words), -1, -1)
    return x, x.new_ones(x.shape[:2], dtype=torch.bool), query.words, query.word_mask


def build_proposals(config: MapModelConfig, first: bool = True) -> Proposals:
    """Returns the temporal map that a configuration asks for; `first` is as for `conv_proposals`."""
    if config.proposals == "pool":
        return pool_proposals(config.clips, config.scales)
    return conv_proposals(config.clips, config.scales, config.hidden, first)


def switch_floats(config: FusedMapConfig) -> int:
    """Returns a generous count of the values per query that the switches keep, beside what convolves the maps."""
    words, clips, hidden, attention = 64, config.clips, config.hidden, config.cross_attention  # words of a query
    branches = 40 * clips * hidden + 8 * words * hidden + 4 * attention.heads * clips * (clips + words)
    cells = sum(clips**2 for clips, _ in config.maps)
    matching = cells * (4 * hidden + 4 * config.joint) if config.contrastive else 0
    ends = 0 if config.ends == "none" else 4 * cells * hidden
    return (attention.layers + attention.stem) * branches + matching + ends


def map_memory(
    config: MapModelConfig, kernel_sizes: Sequence[int], feature_size: int, frames: int, switches: int = 0
) -> Memory:
    """Returns generous counts of the bytes that a network with `MapConvs` takes; see `MomentModel.memory`.

    `switches` is the count of `switch_floats`.
    """
    border = 2 * sum(size // 2 for size in kernel_sizes)
    maps = sum((clips + border) ** 2 for clips, _ in config.maps) * config.hidden
    video = frames * (4 * feature_size + 8 * config.hidden)
    return Memory(4 * (8 * maps * (len(kernel_sizes) + 2) + video + switches), 4 * 4 * maps, 0)


class _Scores(nn.Module):
    """One video and one query to the scores of all moments, in [0, 1], 0 at cells that are no proposals [1, S, S]."""

    def __init__(self, model: MapModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        found = self.model.score_map(self.model(features, words, word_mask))
        return found.scores * found.mask
