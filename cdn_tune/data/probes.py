"""Probes: a split with one thing changed, to see what the answers of a trained model rest on.

What any family reads of a video, its clips or its sequence, and of a query, its words, is in a batch: there it is
changed. What is drawn follows from the seed and from the video or the query alone, whoever assembles the batch.

Letters: B batch, V sequences, T clips or steps of a video, D feature size, L words, M moments of a query.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from cdn_tune.data.dataset import Batch, Indices, MomentDataset, SequenceBatch, grouped
from cdn_tune.errors import DataError

Change = Callable[[Batch], Batch]
_TRIES = 100  # draws of another sentence
_LEAST_TURN = 0.25  # share of a video by which it is turned at least


class Probed:
    """A split with one thing changed.

    Args:
        dataset: The split.
        probe: Which of `PROBES`.
        seed: Of what is drawn.

    Raises:
        DataError: If the split has nothing to change it with.
    """

    def __init__(self, dataset: MomentDataset, probe: str, seed: int) -> None:
        self._dataset, self._change = dataset, PROBES[probe](dataset, seed)

    def batch(self, indices: Sequence[int] | Indices | torch.Tensor) -> Batch:
        """Returns the queries at `indices`, changed; moments that cannot be told any more are NaN.

        Raises:
            DataError: If a video's features cannot be used.
            IndexError: If an index is outside the dataset or there is none.
        """
        return self._change(self._dataset.batch(indices))


def frames_shuffled(dataset: MomentDataset, seed: int) -> Change:  # noqa: ARG001
    """Returns the change that puts each video's frames in a random order: all is there, and nothing in its place."""

    def shuffle(frames: torch.Tensor, video: int) -> torch.Tensor:
        return frames[torch.from_numpy(_generator(seed, video).permutation(len(frames)))]

    return lambda batch: _with_frames(batch, shuffle)


def frames_mean(dataset: MomentDataset, seed: int) -> Change:  # noqa: ARG001
    """Returns the change that replaces each frame by the mean of its video's: what is there is known, and not when."""
    return lambda batch: _with_frames(batch, lambda frames, _: frames.mean(dim=0, keepdim=True))


def other_sentences(dataset: MomentDataset, seed: int) -> Change:
    """Returns the change that asks of each video a sentence of another one, at random.

    Raises:
        DataError: If the split has one video, or one sentence, only.
    """
    videos, sentences = dataset.videos, dataset.sentences
    generator = np.random.default_rng(seed)
    asked, left = np.arange(len(dataset)), np.arange(len(dataset))
    for _ in range(_TRIES):
        asked[left] = generator.integers(len(dataset), size=len(left))
        left = np.flatnonzero((videos[asked] == videos) | (sentences[asked] == sentences))
        if not len(left):
            break
    else:
        raise DataError(
            f"{dataset.annotations[left[0]].id}: no other video of the split has another sentence to ask; probe with a "
            "larger val split"
        )

    def change(batch: Batch) -> Batch:
        words, word_mask = dataset.words(torch.from_numpy(asked)[batch.indices])
        return replace(batch, words=words, word_mask=word_mask)

    return change


def words_shuffled(dataset: MomentDataset, seed: int) -> Change:  # noqa: ARG001
    """Returns the change that puts the words of each sentence in a random order; of token features, the tokens."""

    def change(batch: Batch) -> Batch:
        words = batch.words.clone()
        counts = batch.word_mask.sum(dim=1).tolist()
        for place, (query, count) in enumerate(zip(batch.indices.tolist(), counts, strict=True)):
            words[place, :count] = batch.words[place, torch.from_numpy(_generator(seed, query).permutation(count))]
        return replace(batch, words=words)

    return change


def time_shifted(dataset: MomentDataset, seed: int) -> Change:
    """Returns the change that moves each video in time, and its moments with it.

    A video is cut in two somewhere in its middle half, and the parts change places. It is cut, at random, where it cuts
    the fewest moments of the video; of a query with a moment that is cut, all moments are NaN.
    """
    found = dict(zip(np.unique(dataset.videos).tolist(), grouped(dataset.videos), strict=True))

    def cut(video: int, steps: int, start: float, step: float) -> int:
        """Returns the step that becomes the first, given the second at which step 0 begins and a step's length."""
        low, high = math.ceil(_LEAST_TURN * steps), math.floor((1 - _LEAST_TURN) * steps)
        places = np.arange(max(low, 1), max(high, 1) + 1)
        seconds = (start + places * step)[:, None]
        spans = dataset.moments[found[video]].reshape(-1, 2).numpy()  # NaN is neither below nor above
        cuts = ((spans[:, 0] < seconds) & (seconds < spans[:, 1])).sum(axis=1)
        return int(_generator(seed, video).choice(places[cuts == cuts.min()]))

    def change(batch: Batch) -> Batch:
        moments = batch.all_moments.clone()
        at: dict[int, tuple[int, int, float, float]] = {}  # of each video: its first step, how many, second, length

        def turn(frames: torch.Tensor, video: int) -> torch.Tensor:
            place = int((batch.videos == video).nonzero()[0])
            start, step = _seconds(batch, place, len(frames))
            at[video] = cut(video, len(frames), start, step), len(frames), start, step
            return frames.roll(-at[video][0], dims=0)

        changed = _with_frames(batch, turn)
        for place, video in enumerate(batch.videos.tolist()):
            first, steps, start, step = at[video]
            moments[place] = _turned(moments[place], start + first * step, first * step, steps * step)
        moments = moments.clamp(min=0).minimum(batch.durations[:, None, None])
        return replace(changed, moments=moments[:, 0], all_moments=moments)

    return change


PROBES: dict[str, Callable[[MomentDataset, int], Change]] = {
    "frames_shuffled": frames_shuffled,
    "frames_mean": frames_mean,
    "other_sentences": other_sentences,
    "words_shuffled": words_shuffled,
    "time_shifted": time_shifted,
}


def _turned(moments: torch.Tensor, cut: float, back: float, whole: float) -> torch.Tensor:
    """Returns the moments [M, 2] of a query once what begins at the second `cut` comes first; NaN if one is cut."""
    starts, ends = moments.unbind(dim=1)
    if bool(((starts < cut) & (cut < ends)).any()):
        return torch.full_like(moments, torch.nan)
    return torch.where((starts >= cut)[:, None], moments - back, moments + (whole - back))


def _with_frames(batch: Batch, change: Callable[[torch.Tensor, int], torch.Tensor]) -> Batch:
    """Returns a batch in which the frames [T, D] of each video, given with its number, are changed."""
    if isinstance(batch, SequenceBatch):
        sequence = batch.sequence.clone()
        for row, steps in enumerate(batch.sequence_mask.sum(dim=1).tolist()):
            video = int(batch.videos[batch.rows == row][0])
            sequence[row, :steps] = change(batch.sequence[row, :steps], video)
        return replace(batch, sequence=sequence)
    visual = torch.empty_like(batch.visual)
    for video in batch.videos.unique().tolist():
        places = (batch.videos == video).nonzero().flatten()
        visual[places] = change(batch.visual[places[0]], video)
    return replace(batch, visual=visual)


def _seconds(batch: Batch, place: int, steps: int) -> tuple[float, float]:
    """Returns the second at which the first step of a query's video begins, and the seconds of a step."""
    if not isinstance(batch, SequenceBatch):
        return 0.0, float(batch.durations[place]) / steps
    centre, step = batch.times[batch.rows[place]].tolist()
    return centre - step / 2, step


def _generator(seed: int, number: int) -> np.random.Generator:
    # One above the number: an entropy that ends in 0 is the same without it.
    return np.random.default_rng(np.random.SeedSequence([seed, number + 1]))
