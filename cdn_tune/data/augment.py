"""Random changes of training queries: temporal crops, moved moments, and queries that nothing answers.

They change the frame features that videos are resampled to, a row of which is never split, and durations and moments in
seconds with them. What is drawn for a query follows from the seed, the epoch and its place in the dataset alone: it is
the same whoever assembles the batch, and after a resume.

Shape letters: B batch, T frame features of a video, M moments of a query.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.config import AugmentConfig
from cdn_tune.data.dataset import Batch, MomentDataset

Rows = npt.NDArray[np.int64]


class Augmented:
    """The train split in one epoch.

    Args:
        dataset: The train split.
        config: Which changes, and how often.
        seed: The experiment's seed.
        epoch: Number of the epoch.
    """

    def __init__(self, dataset: MomentDataset, config: AugmentConfig, seed: int, epoch: int) -> None:
        self._dataset, self._config, self._seed, self._epoch = dataset, config, seed, epoch

    def batch(self, indices: Sequence[int] | Rows | torch.Tensor) -> Batch:
        """Returns the queries at `indices`, changed; a video that is changed for a query is that query's alone.

        A query in whose place another is asked has an empty moment, [0, 0].

        Raises:
            DataError: If a video's features cannot be used.
            IndexError: If an index is outside the dataset or there is none.
        """
        batch = self._dataset.batch(indices)
        visual = batch.visual  # nobody else's: changed in place
        durations, moments, videos, asked = (
            value.clone() for value in (batch.durations, batch.all_moments, batch.videos, batch.indices)
        )
        for place, index in enumerate(batch.indices.tolist()):
            chance = self._generator(index).random(7)  # always as many, so that no change alters another's
            rows = np.arange(visual.shape[1])
            if chance[0] < self._config.shift and len(moments[place].isfinite().all(dim=1).nonzero()) == 1:
                rows, moments[place] = shifted(len(rows), float(durations[place]), moments[place], chance[1])
            if chance[2] < self._config.crop:
                part, moments[place], durations[place] = cropped(
                    len(rows), float(durations[place]), moments[place], self._config.crop_keep, chance[3], chance[4]
                )
                rows = rows[part]
            if not np.array_equal(rows, np.arange(len(rows))):
                visual[place] = visual[place, torch.from_numpy(rows)]
                videos[place] = -1 - index
            if chance[5] < self._config.negative and len(others := self._others(index)):
                asked[place] = int(others[int(chance[6] * len(others))])
                moments[place] = torch.nan
                moments[place, 0] = 0.0
        words, word_mask = self._dataset.words(asked) if self._config.negative else (batch.words, batch.word_mask)
        return replace(
            batch,
            words=words,
            word_mask=word_mask,
            durations=durations,
            moments=moments[:, 0],
            all_moments=moments,
            videos=videos,
        )

    def _generator(self, index: int) -> np.random.Generator:
        # One above the index: an entropy that ends in 0 is the same without it, which is that of the epoch's order.
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, self._epoch, index + 1])))

    def _others(self, index: int) -> Rows:
        """Returns the queries of other videos whose sentence the query's own video does not have."""
        videos, sentences = self._dataset.numbers
        own = videos == videos[index]
        return np.flatnonzero(~np.isin(sentences, sentences[own]) & ~own)


def shifted(frames: int, duration: float, moments: torch.Tensor, place: float) -> tuple[Rows, torch.Tensor]:
    """Returns a video with a query's moment cut out and put in elsewhere: its rows [T], and the moment there [M, 2].

    Args:
        frames: Rows of the video T.
        duration: Its length, in seconds.
        moments: Start and end of the only moment in seconds, NaN-padded [M, 2].
        place: Where among the other rows, as a share in [0, 1).
    """
    first, last = _rows_of(frames, duration, moments)
    inside = np.arange(first, last)
    before = int(place * (frames - len(inside) + 1))
    rows = np.insert(np.delete(np.arange(frames), inside), before, inside)
    return rows, (moments + (before - first) * duration / frames).clamp(0, duration)


def cropped(
    frames: int, duration: float, moments: torch.Tensor, keep: float, length: float, place: float
) -> tuple[Rows, torch.Tensor, float]:
    """Returns a part of a video that holds a query's moments whole: its rows [T], the moments [M, 2], its duration.

    The part is resampled to T rows, each the row of the video in which its middle lies.

    Args:
        frames: Rows of the video T.
        duration: Its length, in seconds.
        moments: Starts and ends in seconds, NaN-padded [M, 2].
        keep: Least share of the video in the part.
        length: How long the part is, from the least to the whole, as a share in [0, 1).
        place: Where it lies among the places that hold the moments, as a share in [0, 1).
    """
    first, last = _rows_of(frames, duration, moments)
    least = math.ceil(keep * frames)
    count = max(least + int(length * (frames - least + 1)), last - first)
    low, high = max(0, last - count), min(first, frames - count)
    begin = low + int(place * (high - low + 1))
    rows = begin + (2 * np.arange(frames) + 1) * count // (2 * frames)
    part = count * duration / frames
    return rows, (moments - begin * duration / frames).clamp(0, part), part


def _rows_of(frames: int, duration: float, moments: torch.Tensor) -> tuple[int, int]:
    """Returns the first row that moments reach into, and the one after the last."""
    known = moments[moments.isfinite().all(dim=1)] * (frames / duration)
    first = min(math.floor(float(known.min())), frames - 1)
    return first, min(max(math.ceil(float(known.max())), first + 1), frames)
