"""The score maps of a split's queries, batch by batch."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cdn_tune.data.batches import Indices, prefetch
from cdn_tune.data.dataset import Batch, MomentDataset
from cdn_tune.errors import NotFinite
from cdn_tune.model.cdn import CDN
from cdn_tune.model.nonfinite import explain_nonfinite
from cdn_tune.training.step.precision import autocast


@dataclass(frozen=True)
class ScoredBatch:
    """The queries of a batch, B of them, and their score maps.

    Attributes:
        batch: The queries, on the device of the scores.
        indices: Their positions in the dataset, on the CPU: int64 [B].
        scores: Scores in [0, 1], float32 [B, S, S]; those of cells that are no proposals mean nothing.
        mask: Which cells are proposals, bool [S, S].
    """

    batch: Batch
    indices: torch.Tensor
    scores: torch.Tensor
    mask: torch.Tensor


def score_batches(
    model: CDN,
    dataset: MomentDataset,
    batches: Sequence[Indices],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Generator[ScoredBatch, None, None]:
    """Yields the score maps of some batches of a split, in order; the model is in eval mode meanwhile.

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
                    output = model(batch.visual, batch.words, batch.word_mask)
                if not bool(output.logits.isfinite().all()):
                    items = [dataset.annotations[index] for index in loaded.indices.tolist()]
                    names = [f"{item.video} ({item.id})" for item in items]
                    reason = explain_nonfinite(model, loaded.visual, loaded.words, names)
                    raise NotFinite(f"scores are not finite: {reason or 'weights or inputs are too large'}")
                yield ScoredBatch(batch, loaded.indices, torch.sigmoid(output.logits.float()), output.mask)
    finally:
        model.train(was_training)
