"""Evaluation of a split: candidate spans per batch, ranked moments per query, and their metrics."""

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cdn_tune.config import EvalConfig
from cdn_tune.config.tables import metrics_depth
from cdn_tune.data.batches import Samples, Source, evaluation_batches, prefetch
from cdn_tune.data.dataset import Batch, MomentDataset
from cdn_tune.errors import NotFinite
from cdn_tune.model.family import MomentModel, Spans
from cdn_tune.model.nonfinite import explain_nonfinite
from cdn_tune.moments.metrics import Answers, first_iou, measure
from cdn_tune.training.step.batch_loss import autocast
from cdn_tune.training.step.process_group import World


@dataclass(frozen=True)
class ScoredBatch:
    """The B queries of a batch and a model's output for them."""

    batch: Batch  # the queries, on the device of the scores
    indices: torch.Tensor  # their positions in the dataset, on the CPU: int64 [B]
    found: Spans  # candidate spans with their scores
    output: Any  # what the model's `forward` returned


def score_batches(
    model: MomentModel,
    dataset: MomentDataset,
    batches: Samples,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    source: Source | None = None,
) -> Generator[ScoredBatch, None, None]:
    """Yields the candidates of some batches of a split, in order; the model is in eval mode meanwhile.

    Args:
        model: On `device`.
        dataset: The split.
        batches: Positions in the dataset; empty ones are left out.
        device: Where the model computes.
        dtype: Format in which it computes.
        source: Assembles the batches; the dataset itself if None.

    Raises:
        NotFinite: If scores or spans are not finite; names the weights or the queries at fault.
    """
    chosen = [np.asarray(each) for each in batches if len(each)]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for loaded in prefetch(source or dataset, chosen, device.type == "cuda"):
                batch = loaded.to(device)
                with autocast(device, dtype):
                    output = model(*model.inputs_of(batch))
                found = model.spans(output, batch.durations)
                if found.has_nan():
                    items = [dataset.annotations[index] for index in loaded.indices.tolist()]
                    names = [f"{item.video} ({item.id})" for item in items]
                    reason = explain_nonfinite(model, loaded.frames, loaded.words, names)
                    raise NotFinite(f"scores or spans are not finite: {reason or 'weights or inputs are too large'}")
                yield ScoredBatch(batch, loaded.indices, found, output)
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class SplitResult:
    """The moments that a model retrieves on a split of Q queries."""

    metrics: dict[str, float]  # by name, in [0, 1]; those of `EvalConfig.metrics`
    top: torch.Tensor  # ranked moments in seconds, NaN-padded, [Q, n, 2]
    scores: torch.Tensor  # their scores in [0, 1], [Q, n]
    ious: torch.Tensor  # IoU of the best-scored moment, float64 [Q]
    loss: float = math.nan  # mean over the queries, if it was asked for


def evaluate_split(
    model: MomentModel,
    dataset: MomentDataset,
    config: EvalConfig,
    world: World | None = None,
    dtype: torch.dtype = torch.float32,
    queries: int | None = None,
    with_loss: bool = False,
) -> SplitResult:
    """Evaluates a model on the queries of a split, each exactly once whatever the number of workers.

    Args:
        model: Put into eval mode for the duration.
        dataset: The split.
        config: Metrics, suppression, queries at once.
        world: The workers that share the queries.
        dtype: Format in which the model computes.
        queries: How many queries, evenly spread over the split; all if None.
        with_loss: Compute the loss too, in eval mode.

    Returns:
        The same result on every worker.

    Raises:
        NotFinite: If scores or spans are not finite; names the weights or the queries at fault.
    """
    world = world or World()
    count = min(queries or len(dataset), len(dataset))
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(np.int64)
    batches = evaluation_batches(dataset, chosen, config.batch_size)
    mine = [np.array_split(batch, world.size)[world.rank] for batch in batches]  # side by side: of as few videos
    limit = max(*config.recalls, metrics_depth(config.metrics))
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    loss = 0.0  # sum over this worker's queries
    for scored in score_batches(model, dataset, mine, world.device, dtype):
        top, top_scores = model.suppress(scored.found, limit, *config.suppression)
        found.append((scored.indices, top.cpu(), top_scores.cpu()))
        if with_loss:
            loss += float(model.loss(scored.output, scored.batch).total) * len(scored.batch)
    parts = [part for parts in world.gather(found) for part in parts]
    position = torch.cat([part[0] for part in parts]).argsort()
    top = torch.cat([part[1] for part in parts])[position]
    top_scores = torch.cat([part[2] for part in parts])[position]
    rows = torch.from_numpy(chosen)
    answers = Answers(top, dataset.moments[rows], dataset.durations[rows], top_scores, config.closed)
    mean = sum(world.gather(loss)) / count if with_loss else math.nan
    return SplitResult(measure(answers, config.metrics).means, top, top_scores, first_iou(answers), mean)
