"""The dataset: queries with their videos' clips, assembled into batches.

Letters: B batch, T clips, D feature size, L words of the longest query in the batch, W word-vector size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.config import DataConfig
from cdn_tune.data.annotations import Annotation, Skipped, Split, true_moments
from cdn_tune.data.features import FeatureStore
from cdn_tune.data.files import Progress
from cdn_tune.data.layouts import features_path, layout_of, root_of, vectors_path
from cdn_tune.data.splits import split_annotations
from cdn_tune.data.vocabulary import Vocabulary, build_vocabulary


@dataclass(frozen=True, eq=False)
class Batch:
    """Queries ready for the model.

    Attributes:
        visual: float32 [B, T, D], clips of each query's video.
        words: float32 [B, L, W], word vectors, zero after the last word.
        word_mask: bool [B, L], true on words.
        durations: float64 [B], seconds.
        moments: float64 [B, 2], start and end of each query's (first) moment in seconds; empty where nothing answers.
        all_moments: float64 [B, M, 2], of all moments that answer it, NaN-padded; M is the most that a query has.
        indices: int64 [B], positions in the dataset.
        videos: int64 [B], a number for each query's video, the same for all queries of a video.
    """

    visual: torch.Tensor
    words: torch.Tensor
    word_mask: torch.Tensor
    durations: torch.Tensor
    moments: torch.Tensor
    all_moments: torch.Tensor
    indices: torch.Tensor
    videos: torch.Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch on a device; from pinned memory to a GPU without waiting for the copy."""
        to_gpu = torch.device(device).type == "cuda"
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=to_gpu) for f in fields(self)})

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory, from which copies to a GPU overlap with its work."""
        return Batch(**{field.name: getattr(self, field.name).pin_memory() for field in fields(self)})


class MomentDataset:
    """The queries of one split. Never changed after it is built; picklable.

    Args:
        annotations: The queries, in file order; of test also those without a moment.
        skipped: Entries of the split's files without a moment.
        vocabulary: Covers the queries' words.
        features: Has the queries' videos.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        skipped: Sequence[Skipped],
        vocabulary: Vocabulary,
        features: FeatureStore,
    ) -> None:
        self.annotations, self.skipped = tuple(annotations), tuple(skipped)
        self.vocabulary, self.features = vocabulary, features
        self._durations = torch.tensor([item.duration for item in self.annotations], dtype=torch.float64)
        self._moments = torch.from_numpy(true_moments(self.annotations))
        numbers = {video: number for number, video in enumerate(dict.fromkeys(item.video for item in self.annotations))}
        self._videos = torch.tensor([numbers[item.video] for item in self.annotations])
        self._rows = features.rows([item.video for item in self.annotations])
        distinct = {query: vocabulary.ids(query) for query in {item.query for item in self.annotations}}
        ids = [distinct[item.query] for item in self.annotations]
        self._lengths = torch.tensor([len(row) for row in ids])
        self._ids = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.int64)
        self._ids[torch.arange(self._ids.shape[1]) < self._lengths[:, None]] = torch.from_numpy(np.concatenate(ids))

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def durations(self) -> torch.Tensor:
        """Durations of the queries' videos in seconds, float64 [Q]."""
        return self._durations

    @property
    def moments(self) -> torch.Tensor:
        """Start and end of all moments that answer each query, in seconds, NaN-padded, float64 [Q, M, 2]."""
        return self._moments

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64] | torch.Tensor) -> Batch:
        """Returns the queries at `indices` (B >= 1), in that order; a video that occurs twice is read once.

        Raises:
            DataError: If a video's features cannot be used.
            IndexError: If an index is outside the dataset or there is none.
        """
        at = torch.as_tensor(indices, dtype=torch.int64)
        if not at.numel():
            raise IndexError("a batch needs at least one index")
        rows = None if self._rows is None else self._rows[at]
        words, word_mask = self.words(at)
        return Batch(
            visual=self.features.gather([self.annotations[i].video for i in at.tolist()], rows),
            words=words,
            word_mask=word_mask,
            durations=self._durations[at],
            moments=self._moments[at, 0],
            all_moments=self._moments[at],
            indices=at,
            videos=self._videos[at],
        )

    def words(self, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns word vectors [B, L, W] of the queries at some positions [B], zero after the last word, and a mask."""
        lengths = self._lengths[at]
        longest = int(lengths.max())
        return self.vocabulary.vectors[self._ids[at, :longest]], torch.arange(longest) < lengths[:, None]

    def describe(self) -> dict[str, Any]:
        """Returns the split's sizes and what is missing in it, ready for JSON."""
        return {
            "queries": len(self.annotations),
            "videos": len({item.video for item in self.annotations}),
            "skipped": [{"id": item.id, "reason": item.reason} for item in self.skipped],
            "known_words": len(self.vocabulary.rows),
            "unknown_words": len(self.vocabulary.unknown),
            "unknown_examples": list(self.vocabulary.unknown)[:5],
            "unknown_queries": self.vocabulary.unknown_queries,
        }


def load_splits(
    config: DataConfig, splits: Iterable[Split], progress: Progress | None = None
) -> dict[Split, MomentDataset]:
    """Returns the datasets of some splits, sharing one vocabulary and one feature store.

    Everything is checked here, what is quick to check first: annotations, the presence of every video, the feature
    size of the first, word vectors, every query; then, the first time on a node, all features, while the clip cache is
    built from them.

    Args:
        config: The files, and how they are read.
        splits: The splits.
        progress: Called with (videos built, videos to build) while the clip cache is built.

    Raises:
        DataError: If anything is missing or wrong; one line with the file, the value and the remedy.
    """
    wanted = tuple(dict.fromkeys(splits))
    loaded = {split: split_annotations(config, split) for split in wanted}
    # What is only measured on counts every query of its file.
    queries = {split: part.queries if split == "test" else part.annotations for split, part in loaded.items()}
    everything = [item for split in wanted for item in queries[split]]
    features = FeatureStore(
        features_path(config),
        config.frames,
        config.feature_size,
        legacy=config.resampling == "legacy",
        member=layout_of(config.dataset).member,
    )
    features.require(item.video for item in everything)
    features.close()
    vocabulary = build_vocabulary(
        vectors_path(config), config.word_size, config.tokenizer, everything, root_of(config), config.unknown_words
    )
    features.prepare((item.video for item in everything), config.cache_dtype, progress)
    features.close()
    return {split: MomentDataset(queries[split], loaded[split].skipped, vocabulary, features) for split in wanted}


def load_split(config: DataConfig, split: Split) -> MomentDataset:
    """Returns the dataset of one split (see `load_splits`).

    Raises:
        DataError: If anything is missing or wrong.
    """
    return load_splits(config, (split,))[split]
