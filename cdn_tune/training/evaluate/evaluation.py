"""Scores a split with a model: ranked moments per query, and their metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cdn_tune.config import EvalConfig
from cdn_tune.config.tables import metrics_depth
from cdn_tune.data.batches import sequential_batches, shard
from cdn_tune.data.dataset import MomentDataset
from cdn_tune.model.family import MomentModel
from cdn_tune.moments.metrics import Answers, first_iou, measure
from cdn_tune.training.evaluate.scores import score_batches
from cdn_tune.training.step.process_group import World


@dataclass(frozen=True)
class SplitResult:
    """What a model retrieves on a split of Q queries.

    Attributes:
        metrics: By name, in [0, 1]; those of `EvalConfig.metrics`.
        top: Ranked moments in seconds, NaN-padded, [Q, n, 2].
        scores: Their scores in [0, 1], [Q, n].
        ious: IoU of the best-scored moment, float64 [Q].
    """

    metrics: dict[str, float]
    top: torch.Tensor
    scores: torch.Tensor
    ious: torch.Tensor


def evaluate_split(
    model: MomentModel,
    dataset: MomentDataset,
    config: EvalConfig,
    world: World | None = None,
    dtype: torch.dtype = torch.float32,
    queries: int | None = None,
) -> SplitResult:
    """Evaluates a model on the queries of a split, each exactly once whatever the number of workers.

    Args:
        model: Put into eval mode for the duration.
        dataset: The split.
        config: Metrics, NMS threshold, queries at once.
        world: The workers that share the queries.
        dtype: Format in which the model computes.
        queries: How many queries, evenly spread over the split; all if None.

    Returns:
        The same result on every worker.

    Raises:
        NotFinite: If scores are not finite; names the weights or the queries that are to blame.
    """
    world = world or World()
    count = min(queries or len(dataset), len(dataset))
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(np.int64)
    batches = [chosen[batch] for batch in sequential_batches(count, config.batch_size)]
    mine = [shard(batch, world.rank, world.size) for batch in batches]
    limit = max(*config.recalls, metrics_depth(config.metrics))
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for scored in score_batches(model, dataset, mine, world.device, dtype):
        top, top_scores = model.suppress(scored.found, limit, config.nms_threshold)
        found.append((scored.indices, top.cpu(), top_scores.cpu()))
    parts = [part for parts in world.gather(found) for part in parts]
    position = torch.cat([part[0] for part in parts]).argsort()
    top = torch.cat([part[1] for part in parts])[position]
    top_scores = torch.cat([part[2] for part in parts])[position]
    asked = torch.from_numpy(chosen)
    answers = Answers(top, dataset.moments[asked], dataset.durations[asked], top_scores)
    return SplitResult(measure(answers, config.metrics).means, top, top_scores, first_iou(answers))
