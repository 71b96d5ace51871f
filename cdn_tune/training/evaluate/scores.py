"""The candidate spans of a split's queries, batch by batch."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cdn_tune.data.batches import Indices, prefetch
from cdn_tune.data.dataset import Batch, MomentDataset
from cdn_tune.errors import NotFinite
from cdn_tune.model.family import MomentModel, Spans
from cdn_tune.model.nonfinite import explain_nonfinite
from cdn_tune.training.step.precision import autocast


@dataclass(frozen=True)
class ScoredBatch:
    """The queries of a batch, B of them, and what a model yields for them.

    Attributes:
        batch: The queries, on the device of the scores.
        indices: Their positions in the dataset, on the CPU: int64 [B].
        found: Candidate spans with their scores.
        output: What the model's `forward` returned.
    """

    batch: Batch
    indices: torch.Tensor
    found: Spans
    output: Any


def score_batches(
    model: MomentModel,
    dataset: MomentDataset,
    batches: Sequence[Indices],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Generator[ScoredBatch, None, None]:
    """Yields the candidates of some batches of a split, in order; the model is in eval mode meanwhile.

    Args:
        model: On `device`.
        dataset: The split.
        batches: Positions in the dataset; empty ones are left out.
        device: Where the model computes.
        dtype: Format in which it computes.

    Raises:
        NotFinite: If scores are not finite; names the weights or the queries that are to blame.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for loaded in prefetch(dataset, [np.asarray(each) for each in batches if len(each)], device.type == "cuda"):
                batch = loaded.to(device)
                with autocast(device, dtype):
                    output = model(*model.inputs_of(batch))
                found = model.spans(output, batch.durations)
                if bool(found.scores.isnan().any()):
                    items = [dataset.annotations[index] for index in loaded.indices.tolist()]
                    names = [f"{item.video} ({item.id})" for item in items]
                    reason = explain_nonfinite(model, loaded.visual, loaded.words, names)
                    raise NotFinite(f"scores are not finite: {reason or 'weights or inputs are too large'}")
                yield ScoredBatch(batch, loaded.indices, found, output)
    finally:
        model.train(was_training)
