"""SnAG: scalable video grounding by late fusion of a video pyramid with text (Mu, Mo, Li, CVPR 2024).

Shape letters: B videos, N queries, T frames, D feature size, L words, W word size, C video width, E text width,
P points of all levels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cdn_tune.model.snag.config import SnAGConfig, SnAGLoss
from cdn_tune.model.snag.fusion import Fusion
from cdn_tune.model.snag.heads import OffsetHead, ScoreHead
from cdn_tune.model.snag.loss import assign, focal_loss, span_loss
from cdn_tune.model.snag.pyramid import Points, Pyramid, VideoEncoder, points
from cdn_tune.model.snag.text import PooledText, TextEncoder


class SnAGOutput(NamedTuple):
    """What SnAG computes for N queries.

    Attributes:
        logits: One per point [N, P].
        offsets: Distances to start and end in steps of the point's level, at least 0 [N, P, 2].
        mask: True at points of the video, bool [N, P].
        points: Where they lie, in steps of the first level.
    """

    logits: Tensor
    offsets: Tensor
    mask: Tensor
    points: Points


class SumLosses(NamedTuple):
    """Sums over a batch's points, divided by the running normaliser.

    Attributes:
        total: Score loss plus weighted span loss.
        score: Focal loss of the scores.
        span: IoU loss of the spans, without its weight.
        positives: Positive points, a count.
    """

    total: Tensor
    score: Tensor
    span: Tensor
    positives: Tensor


class SnAG(nn.Module):
    """The whole network, for frame features of size D and word vectors of size W."""

    loss_norm: Tensor

    def __init__(self, config: SnAGConfig, feature_size: int, word_size: int, loss: SnAGLoss | None = None) -> None:
        super().__init__()
        self.config, self.loss_config = config, loss or SnAGLoss()
        hidden = config.video.hidden
        self.text: nn.Module = (
            TextEncoder(config.text, word_size)
            if config.text.encoder == "transformer"
            else PooledText(config.text, word_size)
        )
        self.video = VideoEncoder(config.video, feature_size)
        self.fusion = Fusion(config.fusion, hidden, config.text.hidden)
        self.score = ScoreHead(config.head, hidden)
        self.offset = OffsetHead(config.head, hidden, config.video.levels)
        start = torch.tensor(self.loss_config.normaliser, dtype=torch.float64)
        self.register_buffer("loss_norm", start, persistent=self.loss_config.normaliser_resumes)

    def forward(
        self, video: Tensor, video_mask: Tensor, words: Tensor, word_mask: Tensor, rows: Tensor | None = None
    ) -> SnAGOutput:
        """Scores the points of each query's video.

        Args:
            video: Frame features [B, T, D]; T is a multiple of the stride and all halvings.
            video_mask: True at frames, false at padding, bool [B, T].
            words: Word vectors [N, L, W], words first, then padding.
            word_mask: True at words, bool [N, L].
            rows: The video of each query, int64 [N]; None: one query per video.
        """
        text, text_mask = self.text(words, word_mask)  # [N, L', E]
        pyramid = self.video(video, video_mask)
        return self.match(pyramid if rows is None else pyramid.rows(rows), text, text_mask)

    def match(self, pyramid: Pyramid, text: Tensor, text_mask: Tensor) -> SnAGOutput:
        """Scores the points for N queries, given their videos' pyramids and tokens [N, L', E] with a mask [N, L']."""
        return self.heads(self.fusion(pyramid, text, text_mask))

    def heads(self, fused: Pyramid) -> SnAGOutput:
        """Returns scores and offsets of the fused pyramids of N queries."""
        parts = (self.score(fused)[..., 0], self.offset(fused), fused.mask)
        logits, offsets, mask = (torch.cat(fused.split(part), dim=1) for part in parts)
        sizes = [size - 1 for size in fused.sizes]
        return SnAGOutput(
            logits, offsets, mask, points(sizes, self.config.points, self.config.video.length, logits.device)
        )

    def losses(self, output: SnAGOutput, moments: Tensor) -> SumLosses:
        """Returns the losses of a batch, given moments in steps of the first level [N, 2]; `count` comes after."""
        config = self.loss_config
        positive, wanted = assign(output.points, moments.float(), config.centre_radius)
        positive &= output.mask
        norm = self.loss_norm.to(torch.float32)
        score = (focal_loss(output.logits.float(), positive) * output.mask).sum() / norm
        # At all points, so that shapes do not depend on the data; elsewhere against a moment that has a length.
        wanted = torch.where(positive[..., None], wanted, 1.0)
        span = (span_loss(output.offsets.float(), wanted, config.regression) * positive).sum() / norm
        return SumLosses(score + config.regression_weight * span, score, span, positive.sum())

    @torch.no_grad()
    def count(self, positives: Tensor) -> None:
        """Moves the running normaliser towards the number of positive points of a whole batch, at least 1."""
        share = self.loss_config.normaliser_momentum
        self.loss_norm.mul_(share).add_(positives.clamp(min=1).to(self.loss_norm), alpha=1 - share)
