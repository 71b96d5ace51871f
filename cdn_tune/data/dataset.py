"""The dataset: queries with their videos' clips, assembled into batches.

Letters: B batch, T clips, D feature size, L words of the longest query in the batch, W word-vector size, V sequences,
S steps of the longest sequence in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.config import DataConfig
from cdn_tune.data.annotations import Annotation, Skipped, Split, true_moments
from cdn_tune.data.features import FeatureStore
from cdn_tune.data.files import Progress
from cdn_tune.data.layouts import features_path, layout_of, root_of, tokens_path, vectors_path
from cdn_tune.data.sequence_store import SequenceStore, Timed
from cdn_tune.data.sequences import crop, groups_within, reach, shuffled_groups, some
from cdn_tune.data.splits import split_annotations
from cdn_tune.data.tokens import TokenFeatures
from cdn_tune.data.vocabulary import Vocabulary, build_vocabulary
from cdn_tune.errors import DataError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Batch:
    """Queries ready for the model.

    Attributes:
        visual: float32 [B, T, D], clips of each query's video; no clips (T = 0) of families that read sequences.
        words: float32 [B, L, W], word vectors, zero after the last word; or token features.
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

    @property
    def frames(self) -> torch.Tensor:
        """The frame features of each query's video [B, ., D]."""
        return self.visual

    def part(self, queries: slice) -> Batch:
        """Returns some of the queries."""
        return self._changed(lambda value: value[queries])

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch on a device; from pinned memory to a GPU without waiting for the copy."""
        to_gpu = torch.device(device).type == "cuda"
        return self._changed(lambda value: value.to(device, non_blocking=to_gpu))

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory, from which copies to a GPU overlap with its work."""
        return self._changed(torch.Tensor.pin_memory)

    def _changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return type(self)(**{field.name: change(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True, eq=False)
class SequenceBatch(Batch):
    """Queries with their videos, or parts of these, as sequences; each is there once, however many queries it has.

    Attributes:
        sequence: float32 [V, S, D], steps, then zeros.
        sequence_mask: bool [V, S], true on steps.
        times: float64 [V, 2], seconds at step 0, and from a step to the next one.
        rows: int64 [B], the sequence of each query.
    """

    sequence: torch.Tensor
    sequence_mask: torch.Tensor
    times: torch.Tensor
    rows: torch.Tensor

    @property
    def frames(self) -> torch.Tensor:
        """The frame features of each query's video [B, S, D]."""
        return self.sequence[self.rows]

    def part(self, queries: slice) -> Batch:
        """Returns some of the queries, with the sequences that they read."""
        read, rows = torch.unique(self.rows[queries], return_inverse=True)
        changed = {field.name: getattr(self, field.name)[queries] for field in fields(Batch)}
        videos = {name: getattr(self, name)[read] for name in ("sequence", "sequence_mask", "times")}
        return SequenceBatch(**changed, **videos, rows=rows)


class MomentDataset:
    """The queries of one split. Never changed after it is built; picklable.

    What training reads together, a query or queries of a video, is a sample; batches are made of samples.

    Args:
        annotations: The queries, in file order; of test also those without a moment.
        skipped: Entries of the split's files without a moment.
        vocabulary: Covers the queries' words, or has their token features.
        features: Has the queries' videos.
        absent: Sentences that are marked as not in their video, none of the queries.

    Attributes:
        keeps_last: Whether an epoch ends with a batch of what is left, if that is less than a whole one.
    """

    keeps_last: ClassVar[bool] = True

    def __init__(
        self,
        annotations: Sequence[Annotation],
        skipped: Sequence[Skipped],
        vocabulary: Vocabulary | TokenFeatures,
        features: FeatureStore,
        absent: Sequence[Annotation] = (),
    ) -> None:
        self.annotations, self.skipped, self.absent = tuple(annotations), tuple(skipped), tuple(absent)
        self.vocabulary, self.features = vocabulary, features
        self._durations = torch.tensor([item.duration for item in self.annotations], dtype=torch.float64)
        self._moments = torch.from_numpy(true_moments(self.annotations))
        numbers = {video: number for number, video in enumerate(dict.fromkeys(item.video for item in self.annotations))}
        self._videos = torch.tensor([numbers[item.video] for item in self.annotations])
        self._rows = features.rows([item.video for item in self.annotations])
        self._queries = vocabulary.table([item.query for item in self.annotations])

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

    @property
    def videos(self) -> Indices:
        """A number for each query's video, int64 [Q]."""
        return self._videos.numpy()

    def samples(self, generator: np.random.Generator, of_videos: bool = False) -> list[Indices]:  # noqa: ARG002
        """Returns the samples of an epoch: every query, or every video with all its queries in their order.

        Args:
            generator: What is random is drawn from it.
            of_videos: Whether samples are videos.

        Returns:
            What `batch` takes, of each sample.
        """
        return grouped(self.videos) if of_videos else list(np.arange(len(self))[:, None])

    def batch(self, indices: Sequence[int] | Indices | torch.Tensor) -> Batch:
        """Returns the queries at `indices` (B >= 1), in that order; a video that occurs twice is read once.

        Raises:
            DataError: If features of a video or of tokens cannot be used.
            IndexError: If an index is outside the dataset or there is none.
        """
        at = torch.as_tensor(indices, dtype=torch.int64)
        if not at.numel():
            raise IndexError("a batch needs at least one index")
        words, word_mask = self.words(at)
        return Batch(
            visual=self._visual(at),
            words=words,
            word_mask=word_mask,
            durations=self._durations[at],
            moments=self._moments[at, 0],
            all_moments=self._moments[at],
            indices=at,
            videos=self._videos[at],
        )

    def words(self, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns words [B, L, W] of the queries at some positions [B], and their mask [B, L], as `Batch` has them."""
        return self._queries.batch(at)

    @cached_property
    def sentences(self) -> Indices:
        """A number for each query's sentence, the same for all that have it, int64 [Q]."""
        return np.unique([item.query for item in self.annotations], return_inverse=True)[1]

    def _visual(self, at: torch.Tensor) -> torch.Tensor:
        rows = None if self._rows is None else self._rows[at]
        return self.features.gather([self.annotations[i].video for i in at.tolist()], rows)

    def asking(self, queries: Sequence[Annotation]) -> MomentDataset:
        """Returns a dataset of other queries about the same videos, which have words of this one's only."""
        return type(self)(queries, (), self.vocabulary, self.features)

    def describe(self) -> dict[str, Any]:
        """Returns the split's sizes and what is missing in it, ready for JSON."""
        return {
            "queries": len(self.annotations),
            "videos": len({item.video for item in self.annotations}),
            "skipped": [{"id": item.id, "reason": item.reason} for item in self.skipped],
            **self.vocabulary.describe(),
        }


class SequenceDataset(MomentDataset):
    """The queries of one split, and their videos as sequences. A batch is made from rows (query, first step, steps).

    Args:
        annotations: As of `MomentDataset`.
        skipped: As of `MomentDataset`.
        vocabulary: As of `MomentDataset`.
        features: Has the queries' videos.
        absent: As of `MomentDataset`.
    """

    keeps_last = False
    features: SequenceStore

    def __init__(
        self,
        annotations: Sequence[Annotation],
        skipped: Sequence[Skipped],
        vocabulary: Vocabulary | TokenFeatures,
        features: SequenceStore,
        absent: Sequence[Annotation] = (),
    ) -> None:
        super().__init__(annotations, skipped, vocabulary, features, absent)
        found = {item.video: features.timed(item.video, item.duration) for item in reversed(self.annotations)}
        self._timed = [found[item.video] for item in self.annotations]

    def batch(self, indices: Sequence[int] | Indices | torch.Tensor) -> SequenceBatch:
        """Returns queries in the given order; each part of a video is read once.

        Args:
            indices: Positions of queries [B], whose videos are read whole; or with first step and number of steps of
                the part that is read [B, 3], which cuts the moments.

        Raises:
            DataError: If a video's features cannot be used.
            IndexError: If an index is outside the dataset or there is none.
        """
        given = torch.as_tensor(indices, dtype=torch.int64)
        at = given if given.ndim == 1 else given[:, 0]
        batch = super().batch(at)
        timed = [self._timed[query] for query in at.tolist()]
        steps = torch.tensor([each.steps for each in timed])
        parts = torch.stack([torch.zeros_like(steps), steps], dim=1) if given.ndim == 1 else given[:, 1:]  # [B, 2]
        read, rows = torch.unique(torch.cat([batch.videos[:, None], parts], dim=1), dim=0, return_inverse=True)
        first = torch.full((len(read),), len(at)).scatter_reduce(0, rows, torch.arange(len(at)), "amin")
        queries = first.tolist()  # the first query that reads each sequence
        sequence, mask = self.features.padded([self.annotations[at[query]].video for query in queries], parts[first])
        grids = [timed[query].grid for query in queries]
        begin = [grid.to_seconds(float(parts[query, 0])) for query, grid in zip(queries, grids, strict=True)]
        step = [grid.clip_stride / float(grid.fps) for grid in grids]
        times = torch.tensor([begin, step], dtype=torch.float64).T
        if given.ndim > 1 and self.features.config.form == "variable":
            half = torch.tensor([each.grid.offset for each in timed], dtype=torch.float64)  # of a clip, in steps
            ends = torch.stack([-half, parts[:, 1] + half], dim=1)  # [B, 2]
            if self.features.config.crop is None:
                whole = parts[:, 1] == steps
                ends[whole] = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
            low, high = (times[rows, :1] + ends * times[rows, 1:]).unbind(1)
            batch = replace(batch, moments=batch.moments.clamp(low[:, None], high[:, None]))
        kept = {field.name: getattr(batch, field.name) for field in fields(Batch)}
        return SequenceBatch(**kept, sequence=sequence, sequence_mask=mask, times=times, rows=rows)

    def samples(self, generator: np.random.Generator, of_videos: bool = True) -> list[Indices]:  # noqa: ARG002
        """Returns the samples of an epoch: of every video its queries in groups, each with a part that holds them.

        Returns:
            Per group, query, first step and number of steps, int64 [queries, 3].

        Raises:
            DataError: If a moment is too long for the parts.
        """
        config = self.features.config
        moments = self.moments[:, 0].numpy()
        found = []
        for queries in grouped(self.videos):
            timed = self._timed[queries[0]]
            if config.form == "variable":
                seconds = reach(timed.steps, config.length, timed.grid, config.crop)
                groups = groups_within(moments[queries], seconds, config.queries, generator)
            elif config.groups == "random":
                groups = [some(np.arange(len(queries)), config.queries, generator)]
            else:
                groups = shuffled_groups(len(queries), config.queries, generator)
            for group in groups:
                chosen = queries[group]
                first, length = self._part(chosen, timed, generator)
                found.append(np.stack([chosen, np.full_like(chosen, first), np.full_like(chosen, length)], axis=1))
        return found

    def _part(self, queries: Indices, timed: Timed, generator: np.random.Generator) -> tuple[int, int]:
        """Returns first step and number of steps of a random part of a video that holds the moments of some queries."""
        config, item = self.features.config, self.annotations[queries[0]]
        if config.form == "fixed":
            return 0, timed.steps
        wanted = timed.grid.to_steps(self.moments[queries, 0].numpy())

        def draw(low: int, high: int) -> int:
            return int(generator.integers(low, high, endpoint=True))

        try:
            part = crop(timed.steps, wanted, timed.grid.offset, config.length, draw, config.crop)
        except ValueError:
            longest = math.ceil(float(np.diff(wanted).max()))
            raise DataError(
                f"{item.id}: its moment in video {item.video} is too long for a part of {config.length} steps; set "
                f"data.sequence.length={longest}, data.sequence.crop=null, or remove the entry"
            ) from None
        return part.first, part.length

    def _visual(self, at: torch.Tensor) -> torch.Tensor:
        return torch.empty(len(at), 0, 0)


def grouped(numbers: Indices) -> list[Indices]:
    """Returns the places of each different number, in rising order of the numbers."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)


def load_splits(
    config: DataConfig, splits: Iterable[Split], progress: Progress | None = None, sequences: bool = False
) -> dict[Split, MomentDataset]:
    """Returns the datasets of some splits, sharing one vocabulary and one feature store.

    Everything is checked here, what is quick to check first: annotations, the presence of every video, the feature
    size of the first, word vectors or token features, every query; then, the first time on a node, all features, while
    the clip cache is built from them.

    Args:
        config: The files, and how they are read.
        splits: The splits.
        progress: Called with (videos built, videos to build) while the clip cache is built.
        sequences: Whether videos are read as sequences (`Inputs.sequences`); else as clips.

    Raises:
        DataError: If anything is missing or wrong; one line with the file, the value and the remedy.
    """
    return load_readings(config, splits, (sequences,), progress)[sequences]


def load_readings(
    config: DataConfig, splits: Iterable[Split], reads: Iterable[bool], progress: Progress | None = None
) -> dict[bool, dict[Split, MomentDataset]]:
    """Returns what `load_splits` does for each value of its `sequences` in `reads`, with one vocabulary for all."""
    wanted = tuple(dict.fromkeys(splits))
    loaded = {split: split_annotations(config, split) for split in wanted}
    # What is only measured on counts every query of its file.
    queries = {split: part.queries if split == "test" else part.annotations for split, part in loaded.items()}
    absent = {split: part.absent if split != "train" else () for split, part in loaded.items()}
    everything = [item for split in wanted for item in (*queries[split], *absent[split])]
    path, member = features_path(config), layout_of(config.dataset).member
    stores = {
        sequences: SequenceStore(path, config.sequence, config.feature_size, member)
        if sequences
        else FeatureStore(path, config.frames, config.feature_size, config.resampling == "legacy", member=member)
        for sequences in reads
    }
    for features in stores.values():
        features.require(item.video for item in everything)
        features.close()
    vocabulary = _vocabulary(config, everything)
    for features in stores.values():
        features.prepare((item.video for item in everything), config.cache_dtype, progress)
        features.close()

    def dataset(split: Split, features: FeatureStore) -> MomentDataset:
        items, skipped = queries[split], loaded[split].skipped
        if isinstance(features, SequenceStore):
            return SequenceDataset(items, skipped, vocabulary, features, absent[split])
        return MomentDataset(items, skipped, vocabulary, features, absent[split])

    return {each: {split: dataset(split, features) for split in wanted} for each, features in stores.items()}


def load_split(config: DataConfig, split: Split, sequences: bool = False) -> MomentDataset:
    """Returns the dataset of one split (see `load_splits`).

    Raises:
        DataError: If anything is missing or wrong.
    """
    return load_splits(config, (split,), sequences=sequences)[split]


def _vocabulary(config: DataConfig, annotations: Sequence[Annotation]) -> Vocabulary | TokenFeatures:
    """Returns what the queries of some annotations are read with, as `data.text` says."""
    root = root_of(config)
    if config.text == "words":
        path = vectors_path(config)
        return build_vocabulary(path, config.word_size, config.tokenizer, annotations, root, config.unknown_words)
    tokens = TokenFeatures(tokens_path(config), config.word_size)
    tokens.require((item.query for item in annotations), root)
    return tokens
