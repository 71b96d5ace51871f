"""MMN, a network that matches the moments of a video with a sentence (arXiv 2109.04872).

Shape letters: B queries, V videos (or windows), T frames, D feature size, S clips, H hidden, M valid cells, J joint
size, L words, W word size.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.model.family import Batch, Losses, Memory, ScoreMap, Spans
from cdn_tune.model.layers.clip_pool import MeanPool
from cdn_tune.model.layers.contrast import Matching, contrastive_losses, distinct
from cdn_tune.model.layers.map_convs import MapConvs
from cdn_tune.model.layers.map_model import MapModel, build_proposals, map_memory
from cdn_tune.model.mmn.config import MMNConfig, MMNLoss
from cdn_tune.model.mmn.loss import iou_loss
from cdn_tune.moments.nms import Suppression
from cdn_tune.moments.temporal_map import iou_maps, valid_mask

_SHARPNESS = 10.0  # of the IoU score, a sigmoid of the cosine times this
_COSINES = 6  # copies of the cosines of all queries with all cells that the losses hold
_OVERLAPS = 4  # copies of the maps of IoU
_LATE = 0.01  # share that the contrastive losses keep after `contrastive_epochs`


class MMNOutput(NamedTuple):
    """Embeddings of B queries and of V different videos, all of unit length: first for contrast, then for IoU.

    Attributes:
        moments: Of the valid cells, row by row [V, 2, J, M].
        sentences: Of the queries [B, 2, J].
        rows: The video of each query [B].
        videos: As of `Matching`.
    """

    moments: Tensor
    sentences: Tensor
    rows: Tensor
    videos: Tensor | None = None

    def part(self, part: int) -> Matching:
        """Returns the embeddings for contrast (0) or for IoU (1)."""
        return Matching(self.moments[:, part], self.sentences[:, part], self.rows, self.videos)

    def cosines(self, part: int) -> Tensor:
        """Returns the cosine of every query with the cells of its own video, float32 [B, M]."""
        return self.part(part).cosines()


class MMN(MapModel):
    """The whole network, for frame features of size D and word (or token) vectors of size W.

    Videos are encoded without looking at the query: in a batch each video once, however many of its queries are there.
    """

    config: MMNConfig
    loss_names = ("loss_iou", "loss_vid", "loss_sent")
    text_part = "sentence"

    def __init__(self, config: MMNConfig, feature_size: int, word_size: int, loss: MMNLoss | None = None) -> None:
        super().__init__()
        hidden, clips = config.hidden, config.clips
        self.config, self.feature_size, self.word_size = config, feature_size, word_size
        self.loss_config = loss or MMNLoss()
        self.most_spans = clips**2
        self.rounding = "none" if config.overlaps == "exact" else "multiple"
        self.epoch = 1
        self.clip_pool = MeanPool(feature_size, hidden, clips)
        self.proposals = build_proposals(config, first=False)
        self.map = MapConvs(hidden, config.map.kernel_sizes, valid_mask(clips, config.scales), batch_norm=True)
        self.moment_contrastive = nn.Conv2d(hidden, config.joint, 1)
        self.moment_iou = nn.Conv2d(hidden, config.joint, 1)
        self.sentence = SentenceEncoder(word_size, config.joint)

    def forward(self, visual: Tensor, words: Tensor, word_mask: Tensor, videos: Tensor | None = None) -> MMNOutput:
        """Embeds queries and their videos.

        Args:
            visual: Frame features of each query's video [B, T, D]; S divides T.
            words: Word vectors [B, L, W], words first, then padding.
            word_mask: True or 1 where there is a word [B, L].
            videos: A number for each query's video [B]; without, each query has a video of its own.
        """
        first, rows = distinct(videos, len(visual), visual.device)
        moments = self.encode(visual if first is None else visual[first])  # [V, 2, J, M]
        return MMNOutput(moments, self.sentence(words, word_mask), rows, videos if self.training else None)

    def encode(self, *video: Tensor) -> Tensor:
        """Returns embeddings [V, 2, J, M] of the valid cells of videos' frame features [V, T, D]."""
        clips, _ = self.clip_pool(*video)  # [V, H, S]
        moments = self.map(self.proposals(clips))  # [V, H, S, S]
        joint = torch.stack([self.moment_contrastive(moments), self.moment_iou(moments)], dim=1)  # [V, 2, J, S, S]
        return functional.normalize(joint.flatten(3)[..., self.proposals.by_row].float(), dim=2)

    def answer(self, encoded: Tensor, *query: Tensor) -> list[MMNOutput]:
        """Matches each window [V, 2, J, M] with Q queries, given as word vectors and mask."""
        sentences = self.sentence(*query)  # [Q, 2, J]
        rows = torch.zeros(len(sentences), dtype=torch.int64, device=sentences.device)
        return [MMNOutput(window[None], sentences, rows) for window in encoded]

    def start_epoch(self, epoch: int) -> None:
        """Weights the contrastive losses as in this epoch, counted from 1."""
        self.epoch = epoch

    def loss(self, output: MMNOutput, batch: Batch) -> Losses:
        """Returns the loss; a batch may hold several queries of a video."""
        ious = iou_maps(batch.durations, batch.moments, self.config.clips).flatten(1)  # [B, S S]
        return self.losses(output, ious[:, self.proposals.by_row].float(), batch.moments)

    def losses(self, output: MMNOutput, ious: Tensor, moments: Tensor) -> Losses:
        """Returns the loss, given the IoU of each cell with each query's moment [B, M], and the moments [B, 2]."""
        loss, late = self.loss_config, 0 < self.loss_config.contrastive_epochs < self.epoch
        parts = {
            "loss_iou": iou_loss(_SHARPNESS * output.cosines(1), ious, loss.min_iou, loss.max_iou),
            **contrastive_losses(output.part(0), ious, moments, loss, loss.count_removed),
        }
        weight = loss.contrastive_weight * (_LATE if late else 1.0)
        return Losses(parts["loss_iou"] + weight * (parts["loss_vid"] + parts["loss_sent"]), parts)

    def spans(self, output: MMNOutput, durations: Tensor) -> Spans:
        """Returns the valid cells, row by row, with the product of contrastive and IoU score."""
        return self.cell_spans(durations, self._scores(output))

    @property
    def suppression(self) -> Suppression:
        """Greedy NMS; as published, overlaps are computed in float32."""
        return super().suppression if self.rounding == "none" else Suppression(dtype=torch.float32)

    def score_map(self, output: MMNOutput) -> ScoreMap:
        """Returns the scores of all cells, 0 at those that hold no moment."""
        return ScoreMap(self.proposals.spread(self._scores(output)), self.proposals.mask)

    def memory(self, frames: int, batch: int, dtype: torch.dtype, device: torch.device) -> Memory:  # noqa: ARG002
        """Returns an estimate of training's working memory, per video: that of queries is beside it, for the batch."""
        own = map_memory(self.config, self.config.map.kernel_sizes, self.feature_size, frames)
        cosines = _COSINES * 4 * batch * len(self.proposals.by_row)  # with the cells of a video
        overlaps = 8 * _OVERLAPS * batch * self.config.clips**2
        return Memory(own.bound + cosines + overlaps, own.temporary + cosines, overlaps)

    def iou_scores(self, output: MMNOutput) -> Tensor:
        """Returns the IoU score of the valid cells for each query [B, M]."""
        return torch.sigmoid(_SHARPNESS * output.cosines(1))

    def _scores(self, output: MMNOutput) -> Tensor:
        return output.part(0).scores(self.config.score_power) * self.iou_scores(output)


class SentenceEncoder(nn.Module):
    """Mean of the words, normalised, in two embeddings."""

    def __init__(self, word_size: int, joint: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(word_size)
        self.contrastive = nn.Linear(word_size, joint)
        self.iou = nn.Linear(word_size, joint)

    def forward(self, words: Tensor, word_mask: Tensor) -> Tensor:
        """Returns embeddings of unit length [B, 2, J] of word vectors [B, L, W], of which `word_mask` [B, L] counts."""
        mask = word_mask.to(words.dtype)[..., None]  # [B, L, 1]
        mean = (words * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)  # [B, W]
        sentence = self.norm(mean)
        joint = torch.stack([self.contrastive(sentence), self.iou(sentence)], dim=1)  # [B, 2, J]
        return functional.normalize(joint.float(), dim=2)
