"""Candidate answers in whole videos of any length, in windows if wanted.

Shape letters: N queries, T frames, D feature size, L words, W word size, P points, K candidates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cdn_tune.model.snag.config import EvaluationConfig
from cdn_tune.model.snag.decode import Candidates, decode
from cdn_tune.model.snag.network import SnAG
from cdn_tune.moments.spans import sliding_windows


def external_at_points(external: Tensor, stride: int, levels: int) -> Tensor:
    """Returns external scores of input steps at the points of all levels [N, P].

    Each halving takes the maximum of every second step and its neighbours. The published code does not do so for the
    input stride, and fails where there is one.

    Args:
        external: Factors of the scores of each query [N, T].
        stride: Input steps per step of the first level, a power of two.
        levels: Levels of the pyramid.
    """
    scales = [external[:, None]]
    for _ in range(stride.bit_length() - 1 + levels - 1):
        scales.append(functional.max_pool1d(scales[-1], 3, 2, 1))
    return torch.cat(scales[-levels:], dim=2)[:, 0]


@torch.no_grad()
def candidates(
    model: SnAG,
    video: Tensor,
    queries: Sequence[Tensor],
    window: tuple[int, int] | None = None,
    external: Tensor | None = None,
    settings: EvaluationConfig | None = None,
) -> list[Candidates]:
    """Returns the candidates of each query in a video of any length; each is encoded once.

    Args:
        model: In evaluation mode.
        video: Frame features [T, D].
        queries: Word vectors of each query [L, W].
        window: Length and distance of windows in input steps; None: the video is taken whole.
        external: Factors of the scores of input steps [queries, T].
        settings: Instead of the model's own.

    Returns:
        Per query candidates [1, K], in steps of the first level from the video's start.
    """
    settings, config = settings or model.config.evaluation, model.config.video
    words = (query[None] for query in queries)
    texts = [model.text(query, torch.ones(query.shape[:2], dtype=torch.bool, device=query.device)) for query in words]
    steps = len(video)
    spans = [(0, steps)] if window is None else sliding_windows(steps, steps, *window)
    found: list[list[Candidates]] = [[] for _ in queries]
    times = torch.tensor([[0.0, 1.0]], dtype=torch.float64, device=video.device)
    for first, last in spans:
        frames = video[None, first:last]
        encoded = model.encode(frames, torch.ones(frames.shape[:2], dtype=torch.bool, device=video.device), times)
        factors = None
        if external is not None:
            padded = functional.pad(external[:, first:last], (0, -(last - first) % model.video.multiple))
            factors = external_at_points(padded, config.stride, config.levels)
        for query, (text, mask) in enumerate(texts):
            output = model.match(encoded, text, mask)
            own = decode(output, settings, None if factors is None else factors[query : query + 1])
            found[query].append(own._replace(spans=own.spans + first / config.stride))
    return [_best(each, settings.candidates) for each in found]


def _best(windows: Sequence[Candidates], limit: int) -> Candidates:
    """Returns the best candidates of all windows."""
    spans, scores = (torch.cat(parts, dim=1) for parts in zip(*windows, strict=True))
    scores, index = scores.topk(min(limit, scores.shape[1]), dim=1)
    return Candidates(spans.gather(1, index[..., None].expand(-1, -1, 2)), scores)
