"""What can be had without looking at the video: the best constant answer, the best constant list, and chance.

Shape letters: Q queries, n moments returned per query, G grid steps, N grid moments.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cdn_tune.moments.spans import iou

_CHUNK_CELLS = 64


def best_constant(durations: Tensor, moments: Tensor, threshold: float, steps: int = 100) -> tuple[float, float]:
    """Returns the one (start, end), in fractions of a video, that retrieves most moments.

    Choose it on one split and measure it on another. All pairs of a grid are tried; among equals the one with the
    highest mean IoU wins.

    Args:
        durations: Seconds [Q], above 0.
        moments: Annotated spans in seconds [Q, 2].
        threshold: IoU above which a moment counts as retrieved (R1 at this IoU is maximised).
        steps: Grid steps G per video; fractions are multiples of 1 / G.

    Raises:
        ValueError: If there is no query.
    """
    if len(moments) == 0:
        raise ValueError("no queries to choose a constant answer on: the query set is empty")
    truth = moments.double() / durations.double()[:, None]  # [Q, 2] in fractions; IoU does not change with scale
    grid = torch.arange(steps + 1, dtype=torch.float64, device=truth.device) / steps
    best, answer = (-1.0, -1.0), (0.0, 1.0)
    for index in range(steps):
        ends = grid[index + 1 :]
        spans = torch.stack((grid[index].expand_as(ends), ends), dim=-1)  # [G', 2]
        overlap = iou(truth[:, None, :], spans[None])  # [Q, G']
        recall, mean = (overlap > threshold).double().mean(dim=0), overlap.mean(dim=0)
        top = int((recall + 1e-6 * mean).argmax())
        if (float(recall[top]), float(mean[top])) > best:
            best, answer = (float(recall[top]), float(mean[top])), (float(grid[index]), float(ends[top]))
    return answer


def constant_top(durations: Tensor, answer: tuple[float, float], count: int = 1) -> Tensor:
    """Returns the same moment for every query.

    Args:
        durations: Seconds [Q].
        answer: Start and end as fractions of the video.
        count: Moments per query n; those after the first are NaN, since there is only one answer.

    Returns:
        Spans in seconds, float64 [Q, n, 2], as `measure` takes them.
    """
    top = torch.full((len(durations), count, 2), torch.nan, dtype=torch.float64, device=durations.device)
    top[:, 0] = durations.double()[:, None] * torch.tensor(answer, dtype=torch.float64, device=durations.device)
    return top


def best_constant_list(
    durations: Tensor, moments: Tensor, threshold: float, count: int, steps: int = 50
) -> tuple[tuple[float, float, float], ...]:
    """Returns the ranked list of moments that answers best if it is the same for every query and video.

    The first is the one that retrieves most moments; each next one retrieves most of those that none before it does
    (greedy maximum coverage), so the list is strong at R@n as well as at R@1. Of equals, the one with the highest mean
    IoU over all moments. It depends on neither query nor video: what a model must beat.

    Args:
        durations: Seconds [Q], above 0.
        moments: Annotated spans in seconds [Q, 2], of the split to choose it on.
        threshold: IoU above which a moment counts as retrieved.
        count: Answers in the list.
        steps: Grid steps G per video; fractions are multiples of 1 / G.

    Returns:
        Start and end in fractions of a video, and the share of moments that the answer adds. The shares never grow.

    Raises:
        ValueError: If there is no query.
    """
    if len(moments) == 0:
        raise ValueError("no queries to choose constant answers on: the query set is empty")
    truth = moments.double() / durations.double()[:, None]  # [Q, 2]
    cells = torch.ones(steps, steps, dtype=torch.bool).triu().nonzero()
    grid = (cells + torch.tensor([0, 1])).double() / steps  # [N, 2]
    hits = torch.empty(len(grid), len(truth), dtype=torch.bool)
    mean = torch.empty(len(grid), dtype=torch.float64)
    for first in range(0, len(grid), _CHUNK_CELLS):
        chunk = slice(first, first + _CHUNK_CELLS)
        overlap = iou(grid[chunk, None, :], truth[None])  # [N', Q]
        hits[chunk], mean[chunk] = overlap > threshold, overlap.mean(dim=1)
    left = torch.ones(len(truth), dtype=torch.bool)
    answers: list[tuple[float, float, float]] = []
    for _ in range(min(count, len(grid))):
        share = (hits & left).sum(dim=1).double() / len(truth)
        best = int((share + 1e-9 * mean).argmax())
        answers.append((*grid[best].tolist(), float(share[best])))
        left &= ~hits[best]
        mean[best] = -torch.inf  # given once
    return tuple(answers)


def constant_list_top(durations: Tensor, answers: Sequence[tuple[float, float, float]]) -> Tensor:
    """Returns the same ranked moments for every query.

    Args:
        durations: Seconds [Q].
        answers: As `best_constant_list` returns them, n of them.

    Returns:
        Spans in seconds, float64 [Q, n, 2], as `measure` takes them.
    """
    fractions = torch.tensor([answer[:2] for answer in answers], dtype=torch.float64, device=durations.device)
    return durations.double()[:, None, None] * fractions


def random_top(durations: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns random moments between two points drawn uniformly from each video.

    Args:
        durations: Seconds [Q].
        count: Moments per query n.
        generator: Source of randomness, on the CPU.

    Returns:
        Spans in seconds, float64 [Q, n, 2], as `measure` takes them.
    """
    points = torch.rand(len(durations), count, 2, dtype=torch.float64, generator=generator).sort(dim=-1).values
    return points.to(durations.device) * durations.double()[:, None, None]
