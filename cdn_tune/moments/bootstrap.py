"""How sure a mean over queries is: bootstrap intervals, the queries of a video drawn together.

Queries of one video share its features, so they do not err independently; drawing queries one by one would give
intervals that are too narrow. Videos are drawn with replacement instead, as often as there are videos, each with all
its queries (the cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997).

Shape letters: Q queries, V videos, M metrics, R resamples.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
_CHUNK_DRAWS = 1 << 20  # draws held at once


def cluster_means(values: Floats, clusters: NDArray[np.int64], resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Returns the means of resampled queries, float64 [R, M].

    A resample is told by how often it holds each video: multinomial counts, times the videos' sums.

    Args:
        values: A number per query and metric [Q, M]; NaN where a query does not count (as in a breakdown).
        clusters: The video of each query, as a number [Q].
        resamples: R.
        seed: Of the draws; the same seed gives the same numbers.

    Returns:
        NaN in a resample that holds no query that counts.

    Raises:
        ValueError: If there is no query, or the shapes do not fit.
    """
    sums, counts = cluster_sums(values, clusters)
    distinct, column = np.unique(counts, axis=1, return_inverse=True)  # most metrics count the same queries
    column = column.reshape(-1)
    weights = np.concatenate([sums, distinct], axis=1)
    means = np.empty((resamples, sums.shape[1]))
    for first, drawn in _draws(len(sums), resamples, seed):
        total = drawn @ weights
        size = total[:, sums.shape[1] :][:, column]
        with np.errstate(invalid="ignore", divide="ignore"):
            means[first : first + len(drawn)] = np.where(size > 0, total[:, : sums.shape[1]] / size, np.nan)
    return means


def interval(means: Floats, level: float = 0.95) -> Floats:
    """Returns the percentile interval of resampled means.

    Args:
        means: As `cluster_means` returns them [R, M]; NaN is left out.
        level: Share of the resamples within.

    Returns:
        Lower and upper ends, float64 [2, M]; NaN where no resample has a mean.
    """
    tail = (1 - level) / 2
    ends = np.full((2, means.shape[1]), np.nan)
    whole = ~np.isnan(means).any(axis=0)
    ends[:, whole] = np.quantile(means[:, whole], [tail, 1 - tail], axis=0)
    for index in np.flatnonzero(~whole):
        some = means[~np.isnan(means[:, index]), index]
        if len(some):
            ends[:, index] = np.quantile(some, [tail, 1 - tail])
    return ends


def cluster_sums(values: Floats, clusters: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Returns per video the sum of the values that count, and how many they are: float64 [V, M] each.

    Raises:
        ValueError: If there is no query, or the shapes do not fit.
    """
    if values.ndim != 2 or clusters.shape != values.shape[:1]:
        raise ValueError(f"want values [Q, M] and clusters [Q], got {[*values.shape]} and {[*clusters.shape]}")
    if not len(values):
        raise ValueError("no queries to resample: the query set is empty")
    _, video = np.unique(clusters, return_inverse=True)
    video = video.reshape(-1)
    counted = ~np.isnan(values)
    sums = np.zeros((int(video.max()) + 1, values.shape[1]))
    counts = np.zeros_like(sums)
    np.add.at(sums, video, np.where(counted, values, 0.0))
    np.add.at(counts, video, counted.astype(np.float64))
    return sums, counts


def _draws(videos: int, resamples: int, seed: int) -> Iterator[tuple[int, Floats]]:
    """Yields (first resample, how often each of some resamples holds each video [some, V])."""
    generator = np.random.Generator(np.random.PCG64(seed))
    step = max(1, _CHUNK_DRAWS // videos)
    for first in range(0, resamples, step):
        rows = min(step, resamples - first)
        drawn = generator.integers(0, videos, size=(rows, videos))
        drawn += np.arange(rows)[:, None] * videos
        counts = np.bincount(drawn.ravel(), minlength=rows * videos).reshape(rows, videos)
        yield first, counts.astype(np.float64)
