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
from cdn_tune.model.layers.map_convs import MapConvs
from cdn_tune.model.layers.map_model import MapModel, build_proposals, map_memory
from cdn_tune.model.mmn.config import MMNConfig, MMNLoss
from cdn_tune.model.mmn.loss import iou_loss, moment_contrast, negative_sentences, positive_cells, sentence_contrast
from cdn_tune.moments.nms import Suppression
from cdn_tune.moments.temporal_map import iou_maps, valid_mask

_SHARPNESS = 10.0  # of the IoU score, a sigmoid of the cosine times this
_LATE = 0.01  # share that the contrastive losses keep after `contrastive_epochs`


class MMNOutput(NamedTuple):
    """Embeddings of B queries and of V different videos, all of unit length: first for contrast, then for IoU.

    Attributes:
        moments: Of the valid cells, row by row [V, 2, J, M].
        sentences: Of the queries [B, 2, J].
        rows: The video of each query [B].
    """

    moments: Tensor
    sentences: Tensor
    rows: Tensor

    def cosines(self, part: int) -> Tensor:
        """Returns the cosine of every query with the cells of its own video, float32 [B, M]."""
        return self.all_cosines(part)[torch.arange(len(self.rows), device=self.rows.device), self.rows]

    def all_cosines(self, part: int) -> Tensor:
        """Returns the cosine of every query with the cells of every video, float32 [B, V, M]."""
        return torch.einsum("bj,vjm->bvm", self.sentences[:, part].float(), self.moments[:, part].float())


class MMN(MapModel):
    """The whole network, for frame features of size D and word (or token) vectors of size W.

    Videos are encoded without looking at the query: in a batch each video once, however many of its queries are there.
    """

    config: MMNConfig
    loss_names = ("loss_iou", "loss_vid", "loss_sent")

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
        first, rows = _distinct(videos, len(visual), visual.device)
        moments = self.encode(visual if first is None else visual[first])  # [V, 2, J, M]
        return MMNOutput(moments, self.sentence(words, word_mask), rows)

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
        contrastive, rows = output.all_cosines(0), output.rows
        top = positive_cells(ious, loss.positives)  # [B, K]
        keep = negative_sentences(moments, rows, loss.sentence_iou)  # [B, B]
        sentences, cells = output.sentences[:, 0].float(), output.moments[:, 0].float()
        parts = {
            "loss_iou": iou_loss(_SHARPNESS * output.cosines(1), ious, loss.min_iou, loss.max_iou),
            "loss_vid": moment_contrast(sentences, cells, rows, top, keep, loss.margin, loss.video_temperature),
            "loss_sent": sentence_contrast(
                contrastive,
                rows,
                top,
                ious < loss.negative_iou,
                loss.margin,
                loss.sentence_temperature,
                loss.count_removed,
            ),
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
        mask = self.proposals.mask
        scores = self._scores(output)
        flat = scores.new_zeros(len(scores), mask.numel()).index_copy(1, self.proposals.by_row, scores)
        return ScoreMap(flat.view(-1, *mask.shape), mask)

    def memory(self, frames: int, batch: int, dtype: torch.dtype, device: torch.device) -> Memory:  # noqa: ARG002
        """Returns an estimate of training's working memory, were each query of another video."""
        return map_memory(self.config, self.config.map.kernel_sizes, self.feature_size, frames)

    def iou_scores(self, output: MMNOutput) -> Tensor:
        """Returns the IoU score of the valid cells for each query [B, M]."""
        return torch.sigmoid(_SHARPNESS * output.cosines(1))

    def _scores(self, output: MMNOutput) -> Tensor:
        contrastive = (output.cosines(0) * 0.5 + 0.5).clamp(min=0)
        return contrastive**self.config.score_power * self.iou_scores(output)


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


def _distinct(videos: Tensor | None, count: int, device: torch.device) -> tuple[Tensor | None, Tensor]:
    """Returns where each different video first occurs [V], None if none occurs twice, and each query's video [B]."""
    places = torch.arange(count, device=device)
    if videos is None or videos.is_meta:
        return None, places
    distinct, rows = torch.unique(videos, return_inverse=True)
    if len(distinct) == count:
        return None, places
    first = torch.full_like(distinct, count).scatter_reduce(0, rows, places, "amin")
    return first, rows
