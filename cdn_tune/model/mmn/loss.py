"""MMN's losses (arXiv 2109.04872): IoU, moments against sentences, sentences against moments.

Shape letters: B queries, V videos, M valid cells, J joint size, K positive cells of a query.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from cdn_tune.model.layers.loss import scale_iou
from cdn_tune.moments.spans import iou

_EPSILON = math.log(1e-6)  # of the published code, added to a sum of negatives


def iou_loss(logits: Tensor, ious: Tensor, min_iou: float, max_iou: float) -> Tensor:
    """Returns the mean cross-entropy of the scores of logits [B, M] with rescaled IoU [B, M]."""
    return functional.binary_cross_entropy_with_logits(logits, scale_iou(ious, min_iou, max_iou).to(logits.dtype))


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
    sentences: Tensor, moments: Tensor, rows: Tensor, top: Tensor, keep: Tensor, margin: float, temperature: float
) -> Tensor:
    """Returns the mean cross-entropy of choosing a positive moment's own sentence among all of the batch.

    Args:
        sentences: Embeddings of unit length [B, J].
        moments: Of the cells of each video [V, J, M].
        rows: The video of each sentence [B].
        top: Its positive cells [B, K].
        keep: Sentences that a sentence's moments are compared with, bool [B, B].
        margin: What the cosine with the own sentence is lessened by.
        temperature: What cosines are divided by.
    """
    logits = moment_logits(sentences, moments, rows, top, margin, temperature)
    own = logits.diagonal(dim1=1, dim2=2)  # [K, B]
    return (logits.masked_fill(~keep, -torch.inf).logsumexp(dim=2) - own).mean()


def moment_logits(
    sentences: Tensor, moments: Tensor, rows: Tensor, top: Tensor, margin: float, temperature: float
) -> Tensor:
    """Returns the scaled cosines [K, B, B] of each query's positive cells with all sentences, the margin taken off."""
    cells = moments[rows[:, None], :, top]  # [B, K, J]
    cosines = torch.einsum("bkj,nj->kbn", cells, sentences)
    return (cosines - margin * torch.eye(len(sentences), device=cosines.device)) / temperature


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
