"""Mutual matching of moments and sentences (MMN, arXiv 2109.04872): embeddings, their cosines, contrast both ways.

Shape letters: B queries, V videos, M valid cells, H hidden, E query encoding, J joint size, K positive cells of a
query, A queries of all workers.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.model.layers.map_config import ContrastiveLoss
from cdn_tune.moments.spans import iou

_EPSILON = math.log(1e-6)  # of the published code, added to a sum of negatives


class Matching(NamedTuple):
    """Embeddings of B queries and of V different videos, all of unit length.

    Attributes:
        moments: Of the valid cells, row by row [V, J, M].
        sentences: Of the queries [B, J].
        rows: The video of each query [B].
        videos: A number for that video [B], the same in all workers, whose queries are then contrasted together; None:
            they are not.
    """

    moments: Tensor
    sentences: Tensor
    rows: Tensor
    videos: Tensor | None = None

    def cosines(self) -> Tensor:
        """Returns the cosine of every query with the cells of its own video, float32 [B, M]."""
        return self.all_cosines()[torch.arange(len(self.rows), device=self.rows.device), self.rows]

    def all_cosines(self) -> Tensor:
        """Returns the cosine of every query with the cells of every video, float32 [B, V, M]."""
        return torch.einsum("bj,vjm->bvm", self.sentences.float(), self.moments.float())

    def scores(self, power: float) -> Tensor:
        """Returns the contrastive scores of the cells of each query's video, in [0, 1], to a power [B, M]."""
        return (self.cosines() * 0.5 + 0.5).clamp(min=0) ** power


class MutualMatching(nn.Module):
    """Embeds moments and queries in one space, before they are fused."""

    def __init__(self, hidden: int, query_size: int, joint: int) -> None:
        super().__init__()
        self.moment = nn.Conv1d(hidden, joint, 1)
        self.sentence = nn.Linear(query_size, joint)

    def forward(self, moments: Tensor, query: Tensor, rows: Tensor) -> Matching:
        """Returns the embeddings of valid cells [V, H, M] and queries [B, E], `rows` [B] of which are their videos."""
        cells = functional.normalize(self.moment(moments).float(), dim=1)
        return Matching(cells, functional.normalize(self.sentence(query).float(), dim=1), rows)


def distinct(videos: Tensor | None, count: int, device: torch.device) -> tuple[Tensor | None, Tensor]:
    """Returns where each different video first occurs [V], None if none occurs twice, and each query's video [B].

    Args:
        videos: A number for each query's video [B]; None: each query has a video of its own.
        count: Queries B.
        device: Of the result.
    """
    places = torch.arange(count, device=device)
    if videos is None or videos.is_meta:
        return None, places
    different, rows = torch.unique(videos, return_inverse=True)
    if len(different) == count:
        return None, places
    first = torch.full_like(different, count).scatter_reduce(0, rows, places, "amin")
    return first, rows


class _SumOverWorkers(torch.autograd.Function):
    """The element-wise sum of every worker's tensor; gradients of all workers' losses come back."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


_sum: Callable[[Tensor], Tensor] = _SumOverWorkers.apply


class _Contrasted(NamedTuple):
    """What the queries of a worker are contrasted with.

    Attributes:
        matching: Embeddings of moments of all videos [V, J, M] and of all queries [A, J], and these's videos [A].
        moments: Start and end of the queries' moments [A, 2].
        first: Which of the queries is the worker's first.
    """

    matching: Matching
    moments: Tensor
    first: int = 0


def _contrasted(matching: Matching, moments: Tensor) -> _Contrasted:
    """Returns what all workers compute at once, each video once, given what one does; that itself if it is alone."""
    if matching.videos is None or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return _Contrasted(matching, moments)
    rank, device = dist.get_rank(), moments.device
    counts = torch.zeros(dist.get_world_size(), 2, dtype=torch.int64, device=device)
    counts[rank] = torch.tensor([len(matching.moments), len(moments)], device=device)
    dist.all_reduce(counts)
    ends = counts.cumsum(dim=0)
    (cells, queries), (first_cells, first) = ends[-1].tolist(), (ends - counts)[rank].tolist()

    def together(values: Tensor, begin: int, size: int) -> Tensor:
        before, after = (values.new_zeros(count, *values.shape[1:]) for count in (begin, size - begin - len(values)))
        return _sum(torch.cat([before, values, after]))

    rows = together(matching.rows + first_cells, first, queries)  # [A]
    places, different = distinct(together(matching.videos, first, queries), queries, device)
    found = together(matching.moments, first_cells, cells)[rows if places is None else rows[places]]
    sentences = together(matching.sentences, first, queries)
    return _Contrasted(Matching(found, sentences, different), together(moments, first, queries), first)


def contrastive_losses(
    matching: Matching, ious: Tensor, moments: Tensor, loss: ContrastiveLoss, count_removed: bool = False
) -> dict[str, Tensor]:
    """Returns the losses of moments against sentences (``loss_vid``) and of sentences against moments (``loss_sent``).

    Args:
        matching: Of what is computed at once.
        ious: IoU of each cell with each query's moment [B, M].
        moments: The moments [B, 2].
        loss: Settings.
        count_removed: See `sentence_contrast`.
    """
    found = _contrasted(matching, moments)
    own = torch.arange(len(moments), device=moments.device) + found.first
    top, margin = positive_cells(ious, loss.positives), loss.margin  # [B, K]
    keep = negative_sentences(found.moments, found.matching.rows, loss.sentence_iou)[own]  # [B, A]
    sentences, cells, rows = found.matching.sentences.float(), found.matching.moments.float(), found.matching.rows[own]
    negative = ious < loss.negative_iou
    cosines = Matching(cells, sentences[own], rows).all_cosines()
    return {
        "loss_vid": moment_contrast(sentences, cells, rows, top, keep, margin, loss.video_temperature, own),
        "loss_sent": sentence_contrast(cosines, rows, top, negative, margin, loss.sentence_temperature, count_removed),
    }


def positive_cells(ious: Tensor, count: int) -> Tensor:
    """Returns the cells of highest IoU [B, K], of IoU [B, M]."""
    return ious.topk(min(count, ious.shape[1]), dim=1).indices


def negative_sentences(moments: Tensor, rows: Tensor, limit: float) -> Tensor:
    """Returns which sentences are compared with whose moments, bool [B, B].

    Other sentences of the same video are left out where their moment overlaps by an IoU of `limit` or more.

    Args:
        moments: Start and end of each sentence's moment [B, 2].
        rows: Its video [B].
        limit: The IoU.
    """
    same = rows[:, None] == rows
    alike = same & (iou(moments[:, None], moments[None]) >= limit)
    return ~alike | torch.eye(len(rows), dtype=torch.bool, device=rows.device)


def moment_contrast(
    sentences: Tensor,
    moments: Tensor,
    rows: Tensor,
    top: Tensor,
    keep: Tensor,
    margin: float,
    temperature: float,
    own: Tensor,
) -> Tensor:
    """Returns the mean cross-entropy of choosing a positive moment's own sentence among all of them.

    Args:
        sentences: Embeddings of unit length [A, J].
        moments: Of the cells of each video [V, J, M].
        rows: The video of each query [B].
        top: Its positive cells [B, K].
        keep: Sentences that a query's moments are compared with, bool [B, A].
        margin: What the cosine with the own sentence is lessened by.
        temperature: What cosines are divided by.
        own: Which sentence is the query's [B].
    """
    logits = moment_logits(sentences, moments, rows, top, margin, temperature, own)
    chosen = logits[:, torch.arange(len(own), device=own.device), own]  # [K, B]
    return (logits.masked_fill(~keep, -torch.inf).logsumexp(dim=2) - chosen).mean()


def moment_logits(
    sentences: Tensor, moments: Tensor, rows: Tensor, top: Tensor, margin: float, temperature: float, own: Tensor
) -> Tensor:
    """Returns the scaled cosines [K, B, A] of each query's positive cells with all sentences, the margin taken off."""
    cells = moments[rows[:, None], :, top]  # [B, K, J]
    cosines = torch.einsum("bkj,nj->kbn", cells, sentences)
    return (cosines - margin * functional.one_hot(own, len(sentences))) / temperature


def sentence_contrast(
    cosines: Tensor,
    rows: Tensor,
    top: Tensor,
    negative: Tensor,
    margin: float,
    temperature: float,
    count_removed: bool = False,
) -> Tensor:
    """Returns the mean cross-entropy of choosing a positive cell among it and the negative cells of all videos.

    Args:
        cosines: Of each sentence with the cells of all videos [B, V, M].
        rows: The video of each sentence [B].
        top: Its positive cells [B, K].
        negative: Which cells of the own video are negatives, bool [B, M].
        margin: What the cosine of a positive cell is lessened by.
        temperature: What cosines are divided by.
        count_removed: Other cells of the own video count as if of cosine 0, as published, and do not drop out.
    """
    positive, total = sentence_sums(cosines, rows, top, negative, margin, temperature, count_removed)
    return (torch.logaddexp(total, total.new_tensor(_EPSILON)) - positive).mean()


def sentence_sums(
    cosines: Tensor,
    rows: Tensor,
    top: Tensor,
    negative: Tensor,
    margin: float,
    temperature: float,
    count_removed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns each positive cell's scaled cosine, and the logarithm of the sum over it and all negatives [B, K]."""
    queries = torch.arange(len(rows), device=rows.device)
    own = cosines[queries, rows]  # [B, M]
    positive = (own.gather(1, top) - margin) / temperature  # [B, K]
    left = own.masked_fill(~negative, 0.0 if count_removed else -torch.inf)
    others = cosines.index_put((queries, rows), left) / temperature  # [B, V, M]
    return positive, torch.logaddexp(positive, others.flatten(1).logsumexp(dim=1, keepdim=True))
