"""From scored points to candidate spans.

Shape letters: N queries, P points, K candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cdn_tune.model.snag.config import EvaluationConfig

if TYPE_CHECKING:
    from cdn_tune.model.snag.network import SnAGOutput


class Candidates(NamedTuple):
    """Candidate answers of N queries, best first.

    Attributes:
        spans: Start and end in steps of the first level [N, K, 2].
        scores: In [0, 1]; -inf where there are fewer than K, NaN where the network's output is not finite [N, K].
    """

    spans: Tensor
    scores: Tensor


def decode(output: SnAGOutput, settings: EvaluationConfig, external: Tensor | None = None) -> Candidates:
    """Returns the spans of the best points.

    Args:
        output: Scored points.
        settings: Least score and length, number of candidates K.
        external: Factors of the points' scores [N, P], see `external_at_points`.
    """
    finite = output.logits.isfinite() & output.offsets.isfinite().all(dim=2)
    scores = torch.sigmoid(output.logits.float()).masked_fill(~finite, torch.nan)  # [N, P]
    if external is not None:
        scores = scores * external
    scores = scores.masked_fill((scores <= settings.min_score) | ~output.mask, -torch.inf)
    scores, index = scores.topk(min(settings.candidates, scores.shape[1]), dim=1)  # [N, K]
    offsets = output.offsets.float().gather(1, index[..., None].expand(-1, -1, 2))
    time, stride = output.points.time[index], output.points.stride[index]
    spans = torch.stack([time - offsets[..., 0] * stride, time + offsets[..., 1] * stride], dim=2)
    short = spans[..., 1] - spans[..., 0] <= settings.min_length
    return Candidates(spans, scores.masked_fill(short, -torch.inf))
