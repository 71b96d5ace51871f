"""SnAG: scalable video grounding by late fusion of a video pyramid with text (Mu, Mo, Li, CVPR 2024).

Shape letters: B videos, N queries, T frames, D feature size, L words, W word size, C width, E text width, P points of
all levels, V windows, K candidates.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cdn_tune.model.family import Batch, Losses, Memory, MomentModel, Rows, Spans
from cdn_tune.model.layers.cross_attention import CrossAttention
from cdn_tune.model.layers.span_loss import span_loss
from cdn_tune.model.snag.config import SnAGConfig, SnAGLoss
from cdn_tune.model.snag.decode import decode
from cdn_tune.model.snag.heads import OffsetHead, ScoreHead
from cdn_tune.model.snag.loss import assign, focal_loss
from cdn_tune.model.snag.pyramid import Points, Pyramid, VideoEncoder, points
from cdn_tune.model.snag.text import PooledText, TextEncoder
from cdn_tune.moments.nms import Suppression


class SnAGOutput(NamedTuple):
    """What SnAG computes for N queries.

    Attributes:
        logits: One per point [N, P].
        offsets: Distances to start and end in steps of the point's level, at least 0 [N, P, 2].
        mask: True at points of the video, bool [N, P].
        points: Where they lie, in steps of the first level.
        times: Seconds at the first input step, and from one to the next, float64 [N, 2].
    """

    logits: Tensor
    offsets: Tensor
    mask: Tensor
    points: Points
    times: Tensor


class Encoded(NamedTuple):
    """V videos or windows, encoded once for any number of queries.

    Attributes:
        pyramid: Their features.
        times: As in `SnAGOutput` [V, 2].
    """

    pyramid: Pyramid
    times: Tensor


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

    Losses are divided by a running mean of a batch's positive points, a buffer.
    """

    config: SnAGConfig
    loss_names = ("score_loss", "span_loss")
    normaliser: Tensor
    text_part = "text"

    def __init__(self, config: SnAGConfig, feature_size: int, word_size: int, loss: SnAGLoss | None = None) -> None:
        super().__init__()
        self.config, self.loss_config = config, loss or SnAGLoss()
        self.feature_size = feature_size
        self.most_spans = 2 * config.video.length
        hidden = config.video.hidden
        text = TextEncoder if config.text.encoder == "transformer" else PooledText
        self.text = text(config.text, word_size)
        self.video = VideoEncoder(config.video, feature_size)
        fusion = config.fusion
        settings = fusion.heads, fusion.mode == "adaln", True
        dropouts = fusion.dropout, fusion.attention_dropout, fusion.path_dropout
        self.fusion = CrossAttention(fusion.layers, hidden, config.text.hidden, *settings, *dropouts)
        self.score = ScoreHead(config.head, hidden)
        self.offset = OffsetHead(config.head, hidden, config.video.levels)
        start = torch.tensor(self.loss_config.normaliser, dtype=torch.float64)
        self.register_buffer("normaliser", start, persistent=self.loss_config.normaliser_resumes)
        self._queries: int | None = None  # of the whole batch, within a step
        self._positives: Tensor | None = None  # points of its pieces so far, on this worker

    def forward(
        self,
        sequence: Tensor,
        sequence_mask: Tensor,
        times: Tensor,
        words: Tensor,
        word_mask: Tensor,
        rows: Tensor | None = None,
    ) -> SnAGOutput:
        """Scores the points of each query's video.

        Args:
            sequence: Frame features of videos, which are padded at will [B, T, D].
            sequence_mask: True at frames, false at padding, bool [B, T].
            times: Seconds at each video's first frame feature, and from one to the next [B, 2].
            words: Word vectors [N, L, W], words first, then padding.
            word_mask: True or 1 at words [N, L].
            rows: The video of each query, int64 [N]; None: one query per video.
        """
        encoded = self.encode(sequence, sequence_mask, times)
        text, text_mask = self.text(words, word_mask.bool())  # [N, L', E]
        return self.match(encoded if rows is None else _rows(encoded, rows), text, text_mask)

    def encode(self, *video: Tensor) -> Encoded:
        """Returns videos' or windows' frame features [V, T, D], with mask and times, encoded."""
        sequence, mask, times = video
        return Encoded(self.video(sequence, mask), times)

    def match(self, encoded: Encoded, text: Tensor, text_mask: Tensor) -> SnAGOutput:
        """Scores the points for N queries, given their encoded videos and tokens [N, L', E] with a mask [N, L']."""
        return self.heads(encoded._replace(pyramid=self.fuse(encoded.pyramid, text, text_mask)))

    def fuse(self, pyramid: Pyramid, text: Tensor, text_mask: Tensor) -> Pyramid:
        """Returns the pyramids of N queries' videos, scaled and shifted by what they attend to in their tokens."""
        return pyramid._replace(features=self.fusion(pyramid.features, pyramid.mask, text, text_mask, pyramid.sizes))

    def heads(self, fused: Encoded) -> SnAGOutput:
        """Returns scores and offsets of the fused pyramids of N queries."""
        pyramid, times = fused
        parts = (self.score(pyramid)[..., 0], self.offset(pyramid), pyramid.mask)
        logits, offsets, mask = (torch.cat(pyramid.split(part), dim=1) for part in parts)
        sizes = [size - 1 for size in pyramid.sizes]
        at = points(sizes, self.config.points, self.config.video.length, logits.device)
        return SnAGOutput(logits, offsets, mask, at, times)

    def answer(self, encoded: Encoded, *query: Tensor) -> list[SnAGOutput]:
        """Scores the points of each window for Q queries, given as word vectors and mask."""
        words, word_mask = query
        text, text_mask = self.text(words, word_mask.bool())
        windows = torch.arange(len(encoded.times), device=words.device)[:, None].expand(-1, len(words))
        return [self.match(_rows(encoded, rows), text, text_mask) for rows in windows]

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

    def start_step(self, queries: int) -> None:
        """Begins to count the positive points of a batch."""
        self._queries, self._positives = queries, None

    def loss(self, output: SnAGOutput, batch: Batch) -> Losses:
        """Returns score loss + weight · span loss, over the running positive points of a batch.

        A piece of a batch counts as many times more as the batch has more queries: pieces, which the step weights by
        their queries, then add up to the published loss.
        """
        begin, step = output.times[:, :1], output.times[:, 1:]
        moments = (batch.moments - begin) / (step * self.config.video.stride)
        found = self.sums(output, moments)
        pieces = (self._queries or len(moments)) / len(moments)
        norm = (self.normaliser / pieces).float()
        score, span = found.score / norm, found.span / norm
        if self._queries is not None:
            before = 0 if self._positives is None else self._positives
            self._positives = before + found.positives.double()
        total = score + self.loss_config.regression_weight * span
        return Losses(total, {"score_loss": score, "span_loss": span})

    @torch.no_grad()
    def end_step(self, total: Callable[[Tensor], Tensor]) -> None:
        """Moves the running normaliser towards the positive points of the batch, at least 1."""
        if self._positives is not None:
            share = self.loss_config.normaliser_momentum
            self.normaliser.mul_(share).add_(total(self._positives).clamp(min=1), alpha=1 - share)
        self._queries = self._positives = None

    def spans(self, output: SnAGOutput, durations: Tensor) -> Spans:
        """Returns the spans of the best points, cut to the video."""
        found = decode(output, self.config.evaluation)
        begin, step = output.times[:, None, :1], output.times[:, None, 1:]
        seconds = begin + found.spans.double() * self.config.video.stride * step
        return Spans(seconds.clamp(min=0).minimum(durations.double()[:, None, None]), found.scores)

    def rows(self, output: SnAGOutput, *inputs: Tensor) -> tuple[Rows, ...]:
        """Returns the scores of the points, level by level, and how much those of the first attend to each word."""
        sequence, sequence_mask, times, words, word_mask, *rest = inputs
        encoded = self.encode(sequence, sequence_mask, times)
        encoded = _rows(encoded, rest[0]) if rest else encoded
        text, text_mask = self.text(words, word_mask.bool())
        pyramid = encoded.pyramid
        sizes = [size - 1 for size in pyramid.sizes]
        weights = self.fusion.weights(pyramid.features, pyramid.mask, text, text_mask)[:, : sizes[0]]  # [N, P_0, L']
        weights = weights * pyramid.mask[:, : sizes[0], None]
        scores = (torch.sigmoid(output.logits.float()) * output.mask).split(sizes, dim=1)
        begin, step = output.times.unbind(1)
        seconds = torch.stack([begin, begin + sizes[0] * self.config.video.stride * step], dim=1)
        levels = tuple(f"level {level + 1}" for level in range(len(sizes)))
        background = ("background",) if self.config.text.background else ()
        return (
            Rows("Scores of the levels", scores, levels, seconds),
            Rows("Attention to the words", weights.float().unbind(2), background, seconds),
        )

    @property
    def suppression(self) -> Suppression:
        """Soft NMS and voting of the best of all windows, as published [nms.mode, nms.sigma, nms.voting_thresh]."""
        own = self.config.evaluation
        return Suppression("soft", sigma=0.9, candidates=own.candidates, min_score=own.min_score, voting=0.95)

    def memory(self, frames: int, batch: int, dtype: torch.dtype, device: torch.device) -> Memory:  # noqa: ARG002
        """Returns an estimate of training's working memory, were each query of another video."""
        video, head = self.config.video, self.config.head
        widest = max(self.feature_size, 3 * 4 * video.hidden)  # numbers of a step: its features, a feed-forward layer
        # Channels that layers keep for the backward pass, of steps of the first level: of all levels there are twice as
        # many. About three times what is measured with the published settings.
        encoder, fusion = 50 * (video.convs + video.stem + 2), 100 * self.config.fusion.layers
        kept = (encoder + fusion + 50 * (head.score_layers + head.offset_layers)) * video.hidden
        return Memory(4 * frames * (4 * self.feature_size + kept), 2 * 4 * frames * widest, 0)


def _rows(encoded: Encoded, rows: Tensor) -> Encoded:
    """Returns the encoded videos of queries, in the order of `rows` [N]."""
    return Encoded(encoded.pyramid.rows(rows), encoded.times[rows])
