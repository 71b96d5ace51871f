"""Rejection by the score: equal to pairs counted one by one, and indifferent to the scale of scores."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdn_tune.moments.bootstrap import draws
from cdn_tune.moments.rejection import METRICS, Scored, choose_threshold

SCORES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


def scored(present: list[float], absent: list[float], videos: int = 3) -> Scored:
    return Scored(
        np.array(present), np.array(absent), np.arange(len(present)) % videos, (1 + np.arange(len(absent))) % videos
    )


def of_pairs(present: list[float], absent: list[float]) -> float:
    return float(np.mean([(a > b) + (a == b) / 2 for a, b in itertools.product(present, absent)]))


@given(SCORES, SCORES)
@settings(max_examples=80, deadline=None)
def test_measures_are_those_of_pairs(present: list[float], absent: list[float]) -> None:
    threshold = choose_threshold(np.array(present), np.array(absent))
    found = scored(present, absent).measures(threshold)
    assert tuple(found) == METRICS
    assert found["auroc"] == pytest.approx(of_pairs(present, absent))
    assert found["rejected"] == pytest.approx(np.mean([score < threshold for score in absent]))
    assert found["wrongly_rejected"] == pytest.approx(np.mean([score < threshold for score in present]))
    assert found["balanced_accuracy"] == pytest.approx((found["rejected"] + 1 - found["wrongly_rejected"]) / 2)


@given(SCORES, SCORES)
@settings(max_examples=80, deadline=None)
def test_no_threshold_is_better_on_the_scores_it_was_chosen_on(present: list[float], absent: list[float]) -> None:
    each = scored(present, absent)
    best = each.measures(choose_threshold(np.array(present), np.array(absent)))["balanced_accuracy"]
    for threshold in np.arange(-5, 5, 0.5):
        assert each.measures(float(threshold))["balanced_accuracy"] <= best + 1e-12
    assert best >= 0.5


@given(SCORES, SCORES)
@settings(max_examples=40, deadline=None)
def test_only_the_order_of_scores_counts(present: list[float], absent: list[float]) -> None:
    other = [[2.0**score for score in each] for each in (present, absent)]
    found = [
        scored(*each).measures(choose_threshold(np.array(each[0]), np.array(each[1])))
        for each in ((present, absent), other)
    ]
    assert found[0] == pytest.approx(found[1])


def test_by_hand() -> None:
    each = scored([0.9, 0.8, 0.3], [0.5, 0.2])
    threshold = choose_threshold(each.present, each.absent)
    assert threshold == pytest.approx(0.65)  # half-way between 0.5 and 0.8
    assert each.measures(threshold) == pytest.approx(
        {"auroc": 5 / 6, "balanced_accuracy": 5 / 6, "rejected": 1, "wrongly_rejected": 1 / 3}
    )
    assert choose_threshold(np.array([0.1]), np.array([0.9])) == 0.1  # the wrong way round: none is rejected
    nothing = scored([0.4, 0.5], [-np.inf])  # nothing was retrieved
    assert nothing.measures(choose_threshold(nothing.present, nothing.absent))["balanced_accuracy"] == 1


def test_resampled_videos_are_those_of_a_loop() -> None:
    generator = np.random.default_rng(0)
    each = Scored(
        generator.normal(1, 1, 40),
        generator.normal(0, 1, 30),
        generator.integers(0, 8, 40),
        generator.integers(0, 8, 30),
    )
    found = each.resampled(0.5, 400, 3)
    assert found.shape == (400, 4)
    counts = np.concatenate([drawn for _, drawn in draws(8, 400, 3)])
    for row in (0, 7, 399):
        present = np.repeat(each.present, counts[row][each.present_videos].astype(int))
        absent = np.repeat(each.absent, counts[row][each.absent_videos].astype(int))
        assert found[row, 0] == pytest.approx(of_pairs(present.tolist(), absent.tolist()))
        assert found[row, 2] == pytest.approx((absent < 0.5).mean())
    low, high = np.nanquantile(found[:, 0], [0.025, 0.975])
    assert low < each.measures(0.5)["auroc"] < high


def test_many_sentences_of_few_videos_take_little_memory() -> None:
    generator = np.random.default_rng(1)
    scores, videos = generator.integers(0, 300, (2, 2000)).astype(float), generator.integers(0, 25, (2, 2000))
    each = Scored(*scores, *videos)
    tracemalloc.start()
    found = each.resampled(150, 3000, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # an array of all resamples by sentences is 48 MB, and several are needed
    counts = np.concatenate([drawn for _, drawn in draws(25, 3000, 0)])
    for row in (0, 523, 524, 2999):
        present, absent = (np.repeat(scores[kind], counts[row][videos[kind]].astype(int)) for kind in (0, 1))
        wins = (present[:, None] > absent).mean() + (present[:, None] == absent).mean() / 2
        rejected, wrongly = (absent < 150).mean(), (present < 150).mean()
        assert found[row] == pytest.approx([wins, (rejected + 1 - wrongly) / 2, rejected, wrongly])


def test_both_kinds_are_needed() -> None:
    with pytest.raises(ValueError, match="1 present and 0 absent sentences; both are needed"):
        scored([1.0], [])
