"""Annotations, feature store, vocabulary, dataset, batches, planted data."""

from cdn_tune.data.annotations import SPLITS, Annotation, Skipped, Split
from cdn_tune.data.batches import epoch_batches, prefetch, sequential_batches, shard
from cdn_tune.data.dataset import Batch, MomentDataset, load_split, load_splits
from cdn_tune.data.fingerprint import fingerprint, is_planted
from cdn_tune.data.splits import split_annotations

__all__ = [
    "SPLITS",
    "Annotation",
    "Batch",
    "MomentDataset",
    "Skipped",
    "Split",
    "epoch_batches",
    "fingerprint",
    "is_planted",
    "load_split",
    "load_splits",
    "prefetch",
    "sequential_batches",
    "shard",
    "split_annotations",
]
