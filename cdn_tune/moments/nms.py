"""The best of scored moments, suppressing those that overlap a better one.

Shape letters: Q queries, S clips, N candidate cells.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cdn_tune.moments.spans import iou

_LONGER = 1e-6  # what SnAG's code adds to lengths

# Whether a moment's ends are exact, or rounded to float32 as published: number / clips, then times the duration
# (``share``: 2D-TAN, CDN), or number times duration, then / clips (``multiple``: MMN).
Rounding = Literal["none", "share", "multiple"]

# Queries are taken in chunks of this many candidate cells, so that a chunk's buffers stay in the processor's cache.
_CHUNK_CELLS = {"cpu": 1 << 17, "cuda": 1 << 26}


def top_moments(
    scores: Tensor, durations: Tensor, limit: int, nms_threshold: float, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns each query's best moments after greedy non-maximum suppression.

    The best remaining cell is taken `limit` times; each time the cells whose IoU with it exceeds the threshold go. The
    first of equal scores in row-major order wins, so answers are deterministic. Spans are rounded to float32 before
    their overlap is computed: an IoU of whole clips often meets the threshold exactly, and this rounding decides such
    cases as the published implementation does.

    Args:
        scores: Higher is better [Q, S, S]; cells below the diagonal, NaN and -inf are never answers.
        durations: Seconds [Q].
        limit: How many moments to return per query.
        nms_threshold: IoU above which the lesser moment is dropped.
        valid: Optional bool [S, S]; other cells are never answers. Without it every cell on or above the diagonal may
            be, as published, where cells that are no proposals have score 0 and rank last.

    Returns:
        Spans in seconds, float64 [Q, limit, 2], and their scores [Q, limit], best first, both NaN where a query has
        fewer answers; on the device of `scores`.

    Raises:
        ValueError: If the shapes do not fit or `limit` is not positive.
    """
    if scores.ndim != 3 or scores.shape[1] != scores.shape[2] or durations.shape != scores.shape[:1]:
        raise ValueError(f"want scores [Q, S, S] and durations [Q], got {[*scores.shape]} and {[*durations.shape]}")
    if valid is not None and valid.shape != scores.shape[1:]:
        raise ValueError(f"want valid {[*scores.shape[1:]]}, got {[*valid.shape]}")
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    clips, device = scores.shape[1], scores.device
    if not scores.is_floating_point():
        scores = scores.double()
    allowed = torch.ones(clips, clips, dtype=torch.bool, device=device).triu()
    if valid is not None:
        allowed &= valid.to(device, torch.bool)
    cells = allowed.flatten().nonzero()[:, 0]  # [N]
    return top_spans(
        scores.flatten(1).index_select(1, cells), cell_spans(cells, clips, durations.to(device)), limit, nms_threshold
    )


def cell_spans(cells: Tensor, clips: int, durations: Tensor, rounding: Rounding = "share") -> Tensor:
    """Returns the moments of a map's cells in seconds, float64 [Q, N, 2].

    Args:
        cells: Row times S plus column of each cell [N].
        clips: Clips of a video S.
        durations: Seconds [Q].
        rounding: How ends are rounded to float32 in between.
    """
    kind = torch.float64 if rounding == "none" else torch.float32
    edges = torch.arange(clips + 1, dtype=kind, device=durations.device)
    seconds = durations.to(kind)[:, None]
    edges = (edges / clips * seconds if rounding == "share" else edges * seconds / clips).double()  # [Q, S + 1]
    return torch.stack([edges.index_select(1, cells // clips), edges.index_select(1, cells % clips + 1)], dim=2)


def top_spans(
    scores: Tensor, spans: Tensor, limit: int, nms_threshold: float, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Returns each query's best of any moments, as `top_moments` does of a map's cells; see `suppress`."""
    return suppress(scores, spans, limit, Suppression(threshold=nms_threshold, dtype=dtype))


@dataclass(frozen=True)
class Suppression:
    """How answers that overlap a better one are thinned out.

    Attributes:
        kind: `hard` drops them; `soft` multiplies their scores by exp(-IoU² / sigma) (Bodla et al., arXiv 1704.04503);
            `none` keeps them.
        threshold: `hard`: IoU above which the lesser moment is dropped.
        sigma: `soft`: the decay.
        candidates: So many, the best, are looked at; None: all.
        min_score: `hard`: only better candidates are answers. `soft`: those that decay below are dropped.
        voting: Each answer's span becomes the mean of the candidates whose IoU with it is at least this, weighted by
            their scores; 0: it stays. Not for `none`.
        snag: As SnAG's published code has it: an IoU that equals the threshold is above it, and every length is 1e-6
            longer while moments are suppressed.
        slack: IoUs that differ by no more count as equal: one that equals `threshold` is not above it, one that equals
            `voting` has a vote.
        dtype: Format in which spans are compared.
    """

    kind: Literal["hard", "soft", "none"] = "hard"
    threshold: float = 0.5
    sigma: float = 0.9
    candidates: int | None = None
    min_score: float | None = None
    voting: float = 0.0
    snag: bool = False
    slack: float = 0.0
    dtype: torch.dtype = torch.float64


def suppress(scores: Tensor, spans: Tensor, limit: int, how: Suppression) -> tuple[Tensor, Tensor]:
    """Returns each query's best moments, those that overlap a better one suppressed.

    The best remaining moment is taken `limit` times; each time the others are judged by their IoU with it.

    Args:
        scores: Higher is better [Q, N]; NaN and -inf are never answers.
        spans: The moments, in seconds: of each query [Q, N, 2], or the same for all [N, 2]; those with an end that is
            not finite are never answers.
        limit: How many moments to return per query.
        how: What becomes of overlapping ones.

    Returns:
        Spans in seconds, float64 [Q, limit, 2], and their scores [Q, limit], best first, both NaN where a query has
        fewer answers; on the device of `scores`.

    Raises:
        ValueError: If the shapes do not fit or `limit` is not positive.
    """
    if scores.ndim != 2 or spans.shape not in ((scores.shape[1], 2), (*scores.shape, 2)):
        raise ValueError(
            f"want scores [Q, N] and spans [N, 2] or [Q, N, 2], got {[*scores.shape]} and {[*spans.shape]}"
        )
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    queries, count = scores.shape
    found = torch.full((queries, limit, 2), torch.nan, dtype=torch.float64, device=scores.device)
    best = torch.full((queries, limit), torch.nan, dtype=scores.dtype, device=scores.device)
    if count == 0:
        return found, best
    spans = spans.to(scores.device, how.dtype)
    scores = scores.masked_fill(scores.isnan() | ~(spans[..., 1] - spans[..., 0]).isfinite(), -torch.inf)
    spans = spans.expand(queries, count, 2)
    if how.candidates is not None:
        count = min(count, how.candidates)
        scores, index = scores.topk(count, dim=1)
        spans = spans.gather(1, index[..., None].expand(-1, -1, 2))
    at_once = count * (limit if how.voting else 1)
    step = max(1, _CHUNK_CELLS.get(scores.device.type, 1 << 24) // at_once)
    for first in range(0, queries, step):
        chunk = slice(first, first + step)
        _suppress(scores[chunk], spans[chunk], how, found[chunk], best[chunk])
        if how.voting and how.kind != "none":
            found[chunk] = _voted(scores[chunk], spans[chunk], found[chunk], how.voting - how.slack)
    return found, best


def _suppress(scores: Tensor, candidates: Tensor, how: Suppression, spans: Tensor, best: Tensor) -> None:
    """Fills `spans` [Q, limit, 2] and `best` [Q, limit] from candidates [Q, N, 2]."""
    starts, ends = (candidates[..., end].contiguous() for end in (0, 1))
    scores = scores.clone()
    if how.kind == "hard" and how.min_score is not None:
        scores.masked_fill_(scores <= how.min_score, -torch.inf)
    longer = _LONGER if how.snag else 0.0
    lengths = (ends - starts).add_(longer)
    left, overlap, union = torch.empty_like(starts), torch.empty_like(starts), torch.empty_like(starts)
    for rank in range(best.shape[1]):
        score, index = scores.max(dim=1, keepdim=True)  # [Q, 1]
        found = score > -torch.inf
        start, end = starts.gather(1, index), ends.gather(1, index)  # [Q, 1]
        nan = torch.full_like(start, torch.nan)
        spans[:, rank, 0:1] = torch.where(found, start, nan)
        spans[:, rank, 1:2] = torch.where(found, end, nan)
        best[:, rank : rank + 1] = torch.where(found, score, nan.to(score.dtype))
        if rank + 1 == best.shape[1]:
            return
        if how.kind != "none":
            torch.minimum(ends, end, out=overlap)
            torch.maximum(starts, start, out=left)
            overlap.sub_(left).clamp_(min=0)
            torch.add(lengths, end - start + longer, out=union).sub_(overlap)
            overlap.div_(union)  # IoU
        if how.kind == "hard":
            above = overlap >= how.threshold if how.snag else overlap > how.threshold + how.slack
            scores.masked_fill_(above, -torch.inf)
        elif how.kind == "soft":
            scores.mul_(overlap.nan_to_num_(nan=0.0).square_().div_(-how.sigma).exp_())
            scores.masked_fill_(~(scores >= (how.min_score or 0.0)), -torch.inf)
        scores.scatter_(1, index, -torch.inf)


def _voted(scores: Tensor, candidates: Tensor, spans: Tensor, threshold: float) -> Tensor:
    """Returns spans [Q, limit, 2] moved to the weighted mean of the candidates [Q, N, 2] like them."""
    alike = iou(spans[:, :, None], candidates[:, None]) >= threshold  # [Q, limit, N]
    weights = alike * scores.nan_to_num(neginf=0.0)[:, None].to(spans.dtype)
    total = weights.sum(dim=2, keepdim=True)
    ends = candidates.to(spans.dtype).nan_to_num(posinf=0.0, neginf=0.0)  # those that are none have weight 0
    return torch.where(total > 0, weights @ ends / total, spans)
