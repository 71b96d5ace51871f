"""SnAG: scalable video grounding by late fusion of a video pyramid with text (Mu, Mo, Li, CVPR 2024).

Shape letters: B videos, N queries, T frames, D feature size, L words, W word size, C width, E text width, P points of
all levels, V windows, K candidates.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cdn_tune.model.family import Batch, Losses, MomentModel, Spans
from cdn_tune.model.snag.config import SnAGConfig, SnAGLoss
from cdn_tune.model.snag.decode import decode
from cdn_tune.model.snag.fusion import Fusion
from cdn_tune.model.snag.heads import OffsetHead, ScoreHead
from cdn_tune.model.snag.loss import assign, focal_loss, span_loss
from cdn_tune.model.snag.pyramid import Points, Pyramid, VideoEncoder, levels_of, points
from cdn_tune.model.snag.text import PooledText, TextEncoder
from cdn_tune.moments.grid import Grid
from cdn_tune.moments.nms import Suppression


class SnAGOutput(NamedTuple):
    """What SnAG computes for N queries.

    Attributes:
        logits: One per point [N, P].
        offsets: Distances to start and end in steps of the point's level, at least 0 [N, P, 2].
        mask: True at points of the video, bool [N, P].
        points: Where they lie, in steps of the first level.
        steps: Steps of the first level, whose points come first.
    """

    logits: Tensor
    offsets: Tensor
    mask: Tensor
    points: Points
    steps: int


class LossSums(NamedTuple):
    """Losses of a batch, summed over its points.

    Attributes:
        score: Focal loss of the scores.
        span: IoU loss of the spans of positive points, without its weight.
        positives: Positive points, a count.
    """

    score: Tensor
    span: Tensor
    positives: Tensor


class SnAG(MomentModel):
    """The whole network, for frame features of size D and word vectors of size W.

    Losses are divided by a running mean of positive points per query, a buffer.
    """

    config: SnAGConfig
    loss_names = ("score_loss", "span_loss")
    positives_per_query: Tensor

    def __init__(self, config: SnAGConfig, feature_size: int, word_size: int, loss: SnAGLoss | None = None) -> None:
        super().__init__()
        self.config, self.loss_config = config, loss or SnAGLoss()
        self.most_spans = 2 * config.video.length
        hidden = config.video.hidden
        text = TextEncoder if config.text.encoder == "transformer" else PooledText
        self.text = text(config.text, word_size)
        self.video = VideoEncoder(config.video, feature_size)
        self.fusion = Fusion(config.fusion, hidden, config.text.hidden)
        self.score = ScoreHead(config.head, hidden)
        self.offset = OffsetHead(config.head, hidden, config.video.levels)
        start = torch.tensor(self.loss_config.normaliser)
        self.register_buffer("positives_per_query", start, persistent=self.loss_config.normaliser_resumes)

    def forward(
        self,
        visual: Tensor,
        words: Tensor,
        word_mask: Tensor,
        visual_mask: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> SnAGOutput:
        """Scores the points of each query's video.

        Args:
            visual: Frame features [B, T, D]; T is a multiple of the stride and all halvings.
            words: Word vectors [N, L, W], words first, then padding.
            word_mask: True or 1 at words [N, L].
            visual_mask: True at frames, false at padding, bool [B, T]; None: there is no padding.
            rows: The video of each query, int64 [N]; None: one query per video.
        """
        if visual_mask is None:
            visual_mask = torch.ones(visual.shape[:2], dtype=torch.bool, device=visual.device)
        text, text_mask = self.text(words, word_mask.bool())  # [N, L', E]
        pyramid = self.video(visual, visual_mask)
        return self.match(pyramid if rows is None else pyramid.rows(rows), text, text_mask)

    def match(self, pyramid: Pyramid, text: Tensor, text_mask: Tensor) -> SnAGOutput:
        """Scores the points for N queries, given their videos' pyramids and tokens [N, L', E] with a mask [N, L']."""
        return self.heads(self.fusion(pyramid, text, text_mask))

    def heads(self, fused: Pyramid) -> SnAGOutput:
        """Returns scores and offsets of the fused pyramids of N queries."""
        parts = (self.score(fused)[..., 0], self.offset(fused), fused.mask)
        logits, offsets, mask = (torch.cat(fused.split(part), dim=1) for part in parts)
        sizes = [size - 1 for size in fused.sizes]
        at = points(sizes, self.config.points, self.config.video.length, logits.device)
        return SnAGOutput(logits, offsets, mask, at, sizes[0])

    def encode(self, *video: Tensor) -> Tensor:
        """Returns the pyramids [V, P + L, C] of windows' frame features [V, T, D]."""
        (visual,) = video
        mask = torch.ones(visual.shape[:2], dtype=torch.bool, device=visual.device)
        pyramid: Pyramid = self.video(visual, mask)
        return pyramid.features

    def answer(self, encoded: Tensor, *query: Tensor) -> list[SnAGOutput]:
        """Scores the points of each window for Q queries, given as word vectors and mask."""
        words, word_mask = query
        text, text_mask = self.text(words, word_mask.bool())
        windows = (window.expand(len(words), -1, -1) for window in encoded)
        return [self.match(levels_of(window, self.config.video.levels), text, text_mask) for window in windows]

    def sums(self, output: SnAGOutput, moments: Tensor) -> LossSums:
        """Returns the losses of a batch, given its moments in steps of the first level [N, 2]."""
        config = self.loss_config
        positive, wanted = assign(output.points, moments.float(), config.centre_radius)
        positive &= output.mask
        score = (focal_loss(output.logits.float(), positive) * output.mask).sum()
        # At all points, so that shapes do not depend on the data; elsewhere against a moment that has a length.
        wanted = torch.where(positive[..., None], wanted, 1.0)
        span = (span_loss(output.offsets.float(), wanted, config.regression) * positive).sum()
        return LossSums(score, span, positive.sum())

    def loss(self, output: SnAGOutput, batch: Batch) -> Losses:
        """Returns score loss + weight · span loss, over the queries and the running positive points of one.

        With as many queries in every batch this is the published loss, which is divided by the running positive points
        of a batch; here micro-batches and workers add up to the same.
        """
        stride = self.config.video.stride
        moments = self._grid(output, batch.durations).to_steps(batch.moments[:, None])[:, 0] / stride
        found = self.sums(output, moments)
        queries = len(moments)
        norm = queries * self.positives_per_query
        score, span = found.score / norm, found.span / norm
        if self.training:
            self._count(found.positives, queries)
        total = score + self.loss_config.regression_weight * span
        return Losses(total, {"score_loss": score, "span_loss": span})

    def spans(self, output: SnAGOutput, durations: Tensor) -> Spans:
        """Returns the spans of the best points, cut to the video."""
        found = decode(output, self.config.evaluation)
        seconds = self._grid(output, durations).to_seconds(found.spans.double() * self.config.video.stride)
        return Spans(seconds.clamp(min=0).minimum(durations.double()[:, None, None]), found.scores)

    @property
    def suppression(self) -> Suppression:
        """Soft NMS with voting, as published [nms.mode, nms.sigma, nms.voting_thresh]."""
        return Suppression("soft", sigma=0.9, min_score=self.config.evaluation.min_score, voting=0.95)

    def _grid(self, output: SnAGOutput, durations: Tensor) -> Grid:
        """Returns the grid of input steps: each video's frame features divide it equally."""
        real = output.mask[:, : output.steps].sum(dim=1) * self.config.video.stride  # [N]
        return Grid(1, 1, (real / durations.double())[:, None, None])

    @torch.no_grad()
    def _count(self, positives: Tensor, queries: int) -> None:
        """Moves the running normaliser towards the positive points per query, at least 1 point, of all workers."""
        counts = torch.stack([positives, positives.new_tensor(queries)]).double()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        share = self.loss_config.normaliser_momentum
        mean = counts[0].clamp(min=1) / counts[1]
        self.positives_per_query.mul_(share).add_(mean.to(self.positives_per_query), alpha=1 - share)
