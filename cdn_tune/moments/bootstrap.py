"""How sure a mean over queries is, or the difference of two: resampling, the queries of a video together.

Queries of one video share its features, so they do not err independently; drawing queries one by one would give
intervals that are too narrow. Videos are drawn with replacement instead, as often as there are videos, each with all
its queries (the cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997).

Shape letters: Q queries, V videos, M metrics, R resamples or random sign patterns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
CHUNK_DRAWS = 1 << 20  # draws held at once
_TOLERANCE = 1e-9  # of a sum over queries: sums of the same numbers in another order are ties


def cluster_means(values: Floats, clusters: NDArray[np.int64], resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Returns the means of resampled queries, float64 [R, M].

    A resample is how often it holds each video: multinomial counts, times the videos' sums.

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
    for first, drawn in draws(len(sums), resamples, seed):
        total = drawn @ weights
        size = total[:, sums.shape[1] :][:, column]
        with np.errstate(invalid="ignore", divide="ignore"):
            means[first : first + len(drawn)] = np.where(size > 0, total[:, : sums.shape[1]] / size, np.nan)
    return means


def interval(means: Floats, level: float = 0.95) -> Floats:
    """Returns the percentile interval of resampled means [R, M]: lower and upper ends, float64 [2, M].

    NaN is left out; an end is NaN where no resample has a mean.
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


def draws(videos: int, resamples: int, seed: int) -> Iterator[tuple[int, Floats]]:
    """Yields (first resample, how often each of some resamples holds each video [some, V])."""
    generator = np.random.Generator(np.random.PCG64(seed))
    step = max(1, CHUNK_DRAWS // videos)
    for first in range(0, resamples, step):
        rows = min(step, resamples - first)
        drawn = generator.integers(0, videos, size=(rows, videos))
        drawn += np.arange(rows)[:, None] * videos
        counts = np.bincount(drawn.ravel(), minlength=rows * videos).reshape(rows, videos)
        yield first, counts.astype(np.float64)


@dataclass(frozen=True)
class Paired:
    """By how much the first is better than the second.

    Attributes:
        difference: Mean over queries of first minus second, float64 [M].
        low: Lower end of its 95 % interval (cluster bootstrap of the differences) [M].
        high: Upper end [M].
        p_value: Of the hypothesis that the two are exchangeable within every video; two-sided, in (0, 1] [M].
    """

    difference: Floats
    low: Floats
    high: Floats
    p_value: Floats


def compare_paired(
    first: Floats, second: Floats, clusters: NDArray[np.int64], resamples: int = RESAMPLES, seed: int = 0
) -> Paired:
    """Returns the comparison of two answers to the same queries.

    Args:
        first: A number per query and metric [Q, M].
        second: The same of the other [Q, M].
        clusters: The video of each query, as a number [Q].
        resamples: R, of the bootstrap and of the test.
        seed: Of the draws.

    Raises:
        ValueError: If there is no query, or the shapes do not fit.
    """
    if first.shape != second.shape:
        raise ValueError(f"want two arrays of one shape, got {[*first.shape]} and {[*second.shape]}")
    difference = first - second
    low, high = interval(cluster_means(difference, clusters, resamples, seed))
    return Paired(difference.mean(axis=0), low, high, sign_flip(difference, clusters, resamples, seed))


def sign_flip(difference: Floats, clusters: NDArray[np.int64], resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Returns the p-values of a sign-flip permutation test, float64 [M].

    Were the two answers alike, a video's differences might as well have had the other sign, all of them together. The
    p-value is the share of random sign patterns, the observed one among them, whose mean difference is at least as far
    from 0: (1 + hits) / (1 + R). It is never 0, and exact whatever the distribution. Arguments as in `compare_paired`,
    `difference` [Q, M] being first minus second.
    """
    sums, _ = cluster_sums(difference, clusters)  # [V, M]; queries are the same in each pattern, so sums will do
    observed = np.abs(sums.sum(axis=0))
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    hits = np.zeros(sums.shape[1])
    step = max(1, CHUNK_DRAWS // len(sums))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        signs = generator.integers(0, 2, size=(rows, len(sums))) * 2.0 - 1.0
        hits += (np.abs(signs @ sums) >= observed - _TOLERANCE).sum(axis=0)
    return (1 + hits) / (1 + resamples)


def holm(p_values: Floats) -> Floats:
    """Returns p-values corrected for how many there are, so that the chance of any false alarm is as of one test.

    Holm's step-down procedure (Scandinavian Journal of Statistics 6, 1979): the smallest of C p-values is multiplied by
    C, the next by C - 1 and so on; none falls below one before it, or exceeds 1. It holds however the tests depend.

    Args:
        p_values: Of the comparisons, along the first axis [C, ...]; other axes are corrected each for itself.
    """
    count = len(p_values)
    factors = np.arange(count, 0, -1).reshape(-1, *[1] * (p_values.ndim - 1))
    order = np.argsort(p_values, axis=0, kind="stable")
    stepped = np.maximum.accumulate(factors * np.take_along_axis(p_values, order, axis=0), axis=0)
    corrected = np.empty_like(stepped)
    np.put_along_axis(corrected, order, np.minimum(stepped, 1.0), axis=0)
    return corrected
