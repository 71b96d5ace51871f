"""Telling sentences of what a video does not show from those of what it does, by the score of the best moment.

A sentence is rejected if that score lies below a threshold. Scores of model families differ in scale, so only their
order counts, and a threshold that was chosen among scores of the same model.

Shape letters: P present sentences, A absent ones, V videos, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdn_tune.moments.bootstrap import CHUNK_DRAWS, Floats, draws

Numbers = NDArray[np.int64]
METRICS = ("auroc", "balanced_accuracy", "rejected", "wrongly_rejected")


@dataclass(frozen=True)
class Scored:
    """Scores of the best moment of some sentences, and the video that each was asked of.

    Attributes:
        present: Of sentences that the video shows, float64 [P]; minus infinity where there is no moment.
        absent: Of others, float64 [A].
        present_videos: int64 [P].
        absent_videos: int64 [A], numbered alike.

    Raises:
        ValueError: If either kind is missing.
    """

    present: Floats
    absent: Floats
    present_videos: Numbers
    absent_videos: Numbers

    def __post_init__(self) -> None:
        if not len(self.present) or not len(self.absent):
            raise ValueError(f"{len(self.present)} present and {len(self.absent)} absent sentences; both are needed")

    def measures(self, threshold: float) -> dict[str, float]:
        """Returns `METRICS` by name, each in [0, 1].

        ``auroc``: the chance that a present sentence scores higher than an absent one, of equal scores half of it;
        ``rejected``: the share of absent sentences below the threshold; ``wrongly_rejected``: that of present ones;
        ``balanced_accuracy``: the mean of the shares that are right of the two kinds.
        """
        found = self._measuring(threshold)(np.ones((1, self._videos)))[0]
        return dict(zip(METRICS, found.tolist(), strict=True))

    def resampled(self, threshold: float, resamples: int, seed: int) -> Floats:
        """Returns `METRICS` of resamples of the videos, float64 [R, 4]; NaN in one that lacks a kind of sentence."""
        measure = self._measuring(threshold)
        rows = max(1, CHUNK_DRAWS // max(len(self.present), len(self.absent)))  # few videos may have many sentences
        return np.concatenate(
            [
                measure(counts[first : first + rows])
                for _, counts in draws(self._videos, resamples, seed)
                for first in range(0, len(counts), rows)
            ]
        )

    @property
    def _videos(self) -> int:
        return int(max(self.present_videos.max(), self.absent_videos.max())) + 1

    def _measuring(self, threshold: float) -> Callable[[Floats], Floats]:
        """Returns a function from how often each video counts [R, V] to `METRICS` [R, 4]."""
        order = np.argsort(self.present, kind="stable")
        ranked, videos = self.present[order], self.present_videos[order]
        below, upto = (np.searchsorted(ranked, self.absent, side) for side in ("left", "right"))
        wrong, right = self.present < threshold, self.absent < threshold

        def measure(counts: Floats) -> Floats:
            heights = np.zeros((len(counts), len(ranked) + 1))  # present sentences up to each rank
            np.cumsum(counts[:, videos], axis=1, out=heights[:, 1:])
            weights, present = counts[:, self.absent_videos], heights[:, -1]
            absent = weights.sum(axis=1)
            lower = ((heights[:, below] + heights[:, upto]) * weights).sum(axis=1) / 2  # pairs in which it is no higher
            with np.errstate(invalid="ignore", divide="ignore"):
                auroc = 1 - lower / (present * absent)
                rejected = (weights * right).sum(axis=1) / absent
                wrongly = (counts[:, self.present_videos] * wrong).sum(axis=1) / present
            return np.stack([auroc, (rejected + 1 - wrongly) / 2, rejected, wrongly], axis=1)

        return measure


def choose_threshold(present: Floats, absent: Floats) -> float:
    """Returns the threshold with the highest balanced accuracy on some scores [P] and [A]; of equals the lowest.

    It lies half-way between two neighbouring scores, or at the lowest, so that none is rejected. Balanced accuracy, the
    mean of the shares that are right of either kind, does not depend on how many there are of each.
    """
    scores = np.unique(np.concatenate([present, absent]))  # rising
    below = [np.searchsorted(np.sort(each), scores, "left") / len(each) for each in (absent, present)]
    best = int(np.argmax(np.round(below[0] - below[1], 12)))  # the first of equals
    low, high = scores[max(best - 1, 0)], scores[best]
    middle = (low + high) / 2
    return float(middle if np.isfinite(middle) and low < middle else high)
