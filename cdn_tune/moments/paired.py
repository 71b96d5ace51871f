"""Whether one of two answers to the same queries is better: a paired interval and a paired test, by video.

Shape letters: Q queries, V videos, M metrics, R draws.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdn_tune.moments.bootstrap import RESAMPLES, Floats, cluster_means, cluster_sums, interval

_CHUNK_SIGNS = 1 << 20
_TOLERANCE = 1e-9  # of a sum over queries: sums of the same numbers in another order are ties


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
    """Compares two answers to the same queries.

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
    from 0: (1 + hits) / (1 + R). It is never 0, and exact whatever the distribution.

    Args:
        difference: First minus second, per query and metric [Q, M].
        clusters: The video of each query, as a number [Q].
        resamples: R.
        seed: Of the signs.
    """
    sums, _ = cluster_sums(difference, clusters)  # [V, M]; queries are the same in each pattern, so sums will do
    observed = np.abs(sums.sum(axis=0))
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    hits = np.zeros(sums.shape[1])
    step = max(1, _CHUNK_SIGNS // len(sums))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        signs = generator.integers(0, 2, size=(rows, len(sums))) * 2.0 - 1.0
        hits += (np.abs(signs @ sums) >= observed - _TOLERANCE).sum(axis=0)
    return (1 + hits) / (1 + resamples)
