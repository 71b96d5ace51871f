"""Intervals and paired tests: equal to loops, covering as often as they say, honest about chance."""

import numpy as np
import pytest

from cdn_tune.moments.bootstrap import cluster_means, cluster_sums, compare_paired, holm, interval, sign_flip


def clustered(videos: int, queries: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Normal values whose videos differ by `spread`; the mean is 0."""
    generator = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(videos), queries)
    own = generator.normal(size=(videos, 1)) * spread
    return own[clusters] + generator.normal(size=(len(clusters), 1)), clusters


def test_means_are_those_of_the_drawn_videos() -> None:
    """The same draws, spelt out: every query of every drawn video, once per draw."""
    values, clusters = clustered(5, 3, 0)
    values = np.concatenate([values, values**2], axis=1)[:-1]
    clusters = clusters[:-1] * 10
    means = cluster_means(values, clusters, resamples=50, seed=3)
    draws = np.random.Generator(np.random.PCG64(3)).integers(0, 5, size=(50, 5))
    for row, drawn in enumerate(draws):
        picked = np.concatenate([values[clusters == video * 10] for video in drawn])
        np.testing.assert_allclose(means[row], picked.mean(axis=0))


def test_same_seed_same_numbers() -> None:
    values, clusters = clustered(30, 4, 1)
    first = cluster_means(values, clusters, 200, seed=5)
    assert np.array_equal(first, cluster_means(values, clusters, 200, seed=5))
    assert not np.array_equal(first, cluster_means(values, clusters, 200, seed=6))


def test_queries_that_do_not_count_are_left_out() -> None:
    values, clusters = clustered(12, 4, 2)
    some = values.copy()
    some[1::2] = np.nan
    means = cluster_means(np.concatenate([some, values], axis=1), clusters, 100, seed=0)
    np.testing.assert_allclose(means[:, 0], cluster_means(values[::2], clusters[::2], 100, seed=0)[:, 0])
    np.testing.assert_allclose(means[:, 1], cluster_means(values, clusters, 100, seed=0)[:, 0])
    rare = np.full_like(values, np.nan)
    rare[0] = 7.0
    drawn = cluster_means(rare, clusters, 200, seed=0)
    assert np.isnan(drawn).any()
    assert interval(drawn).tolist() == [[7.0], [7.0]]
    assert np.isnan(interval(np.full((3, 1), np.nan))).all()


def test_intervals_cover_as_often_as_they_say() -> None:
    """95 % intervals over 60 videos hold the true mean about 95 times in 100; per query they would not."""
    inside, alone = 0, 0
    for seed in range(200):
        values, clusters = clustered(60, 5, 1000 + seed)
        low, high = interval(cluster_means(values, clusters, 400, seed))
        inside += bool(low[0] <= 0 <= high[0])
        low, high = interval(cluster_means(values, np.arange(len(values)), 400, seed))
        alone += bool(low[0] <= 0 <= high[0])
    assert 0.90 <= inside / 200 <= 0.985
    assert alone / 200 < 0.80


def test_sign_flip_is_the_share_of_all_patterns() -> None:
    """With few videos every pattern can be tried."""
    values, clusters = clustered(8, 3, 3)
    values += 0.4
    sums = cluster_sums(values, clusters)[0][:, 0]
    patterns = np.array([[1 if number >> bit & 1 else -1 for bit in range(8)] for number in range(256)])
    exact = (np.abs(patterns @ sums) >= abs(sums.sum()) - 1e-9).mean()
    assert sign_flip(values, clusters, 20_000, seed=0)[0] == pytest.approx(exact, abs=0.02)


def test_p_values_of_nothing_are_even_and_of_something_small() -> None:
    p_values = np.array([sign_flip(*clustered(40, 3, seed), 300, seed)[0] for seed in range(200)])
    assert 0.01 <= (p_values <= 0.05).mean() <= 0.1
    assert 0.4 <= p_values.mean() <= 0.6
    values, clusters = clustered(40, 3, 0)
    assert sign_flip(values + 3, clusters, 999)[0] == pytest.approx(1 / 1000)


def test_equal_answers_tie() -> None:
    values, clusters = clustered(20, 2, 4)
    same = compare_paired(values, values, clusters, 100)
    assert (same.difference[0], same.low[0], same.high[0], same.p_value[0]) == (0, 0, 0, 1)


def test_paired_is_antisymmetric_and_narrower_than_apart() -> None:
    values, clusters = clustered(50, 4, 5, spread=3.0)
    better = values + np.random.default_rng(0).normal(0.2, 0.1, size=values.shape)
    one, other = compare_paired(better, values, clusters, 500), compare_paired(values, better, clusters, 500)
    np.testing.assert_allclose(one.difference, -other.difference)
    np.testing.assert_allclose(one.low, -other.high)
    assert one.p_value == other.p_value
    assert one.low[0] > 0.1
    low, high = interval(cluster_means(values, clusters, 500))
    assert one.high[0] - one.low[0] < (high[0] - low[0]) / 5


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="empty"):
        cluster_means(np.zeros((0, 1)), np.zeros(0, dtype=np.int64))
    with pytest.raises(ValueError, match="want values"):
        cluster_means(np.zeros(3), np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match="one shape"):
        compare_paired(np.zeros((3, 1)), np.zeros((2, 1)), np.zeros(3, dtype=np.int64))


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [  # as R's p.adjust(p, "holm") and statsmodels' multipletests have them
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.9, 0.02], [1.0, 1.0, 0.06]),
        ([0.04], [0.04]),
    ],
)
def test_holm_corrects_as_others_do(p_values: list[float], corrected: list[float]) -> None:
    assert holm(np.array(p_values)) == pytest.approx(corrected)
    columns = np.stack([np.array(p_values), np.array(p_values)[::-1]], axis=1)
    assert holm(columns) == pytest.approx(np.stack([corrected, corrected[::-1]], axis=1))


def test_holm_keeps_false_alarms_rare() -> None:
    """Of 20 true hypotheses one or more is rejected in 5 % of all cases; uncorrected, in two thirds."""
    p_values = np.random.default_rng(0).uniform(size=(20, 4000))
    assert (p_values.min(axis=0) < 0.05).mean() > 0.5
    assert (holm(p_values).min(axis=0) < 0.05).mean() < 0.06
