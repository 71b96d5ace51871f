"""Suppression of overlapping moments: hard, soft, by votes."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from cdn_tune.moments.nms import _CHUNK_CELLS, Suppression, suppress, top_spans

SPANS = torch.tensor([[0.0, 10.0], [0.0, 8.0], [20.0, 30.0], [25.0, 35.0]], dtype=torch.float64)
SCORES = torch.tensor([[0.9, 0.8, 0.5, 0.4]])


def order(how: Suppression, limit: int = 4) -> list[int]:
    """The candidates that are answers, best first."""
    found, _ = suppress(SCORES, SPANS, limit, how)
    return [SPANS.tolist().index(span) for span in found[0].tolist() if not math.isnan(span[0])]


def test_soft_suppression_decays_scores() -> None:
    found, scores = suppress(SCORES, SPANS, 4, Suppression("soft", sigma=0.5))
    second, third = 0.8 * math.exp(-(0.8**2) / 0.5), 0.4 * math.exp(-((1 / 3) ** 2) / 0.5)
    assert scores[0].tolist() == pytest.approx([0.9, 0.5, third, second])
    assert found[0].tolist() == SPANS[[0, 2, 3, 1]].tolist()


def test_the_least_score() -> None:
    """Soft: of what has decayed, from the second answer on. Hard: of candidates."""
    assert order(Suppression("soft", sigma=0.5, min_score=0.25)) == [0, 2, 3]
    assert order(Suppression("hard", threshold=0.9, min_score=0.5)) == [0, 1]


@pytest.mark.parametrize(("snag", "kept"), [(False, [0, 1, 2, 3]), (True, [0, 2, 3])])
def test_an_iou_at_the_threshold(snag: bool, kept: list[int]) -> None:
    """SnAG's lengths are 1e-6 longer, so that a threshold a little lower is what it meets."""
    assert order(Suppression("hard", threshold=0.8 - 1e-6 * snag, snag=snag)) == kept


def test_nothing_is_suppressed() -> None:
    assert order(Suppression("none", voting=0.5)) == [0, 1, 2, 3]


def test_votes() -> None:
    """Every candidate like an answer moves it, also suppressed ones, by its score; scores stay."""
    found, scores = suppress(SCORES, SPANS, 2, Suppression("hard", threshold=0.5, voting=0.75))
    assert found[0].tolist() == [[0.0, pytest.approx((9 + 6.4) / 1.7)], [20.0, 30.0]]
    assert scores[0].tolist() == pytest.approx([0.9, 0.5])


def test_candidates_that_are_none() -> None:
    """NaN and -inf are no answers and have no vote; an empty span suppresses and decays nothing."""
    scores = torch.tensor([[torch.nan, 0.8, -torch.inf, 0.4], [0.9, 0.8, 0.7, 0.6]])
    spans = torch.stack([SPANS, torch.tensor([[3.0, 3.0], [3.0, 3.0], [5.0, 5.0], [5.0, 5.0]], dtype=torch.float64)])
    found, best = suppress(scores, spans, 4, Suppression("soft", voting=0.5))
    assert found[0, :2].tolist() == SPANS[[1, 3]].tolist()
    assert bool(found[0, 2:].isnan().all())
    assert best[1].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])


@pytest.mark.parametrize("kind", ["hard", "soft", "none"])
@pytest.mark.parametrize("candidates", [None, 4])
def test_a_candidate_that_is_not_finite_is_as_if_it_were_not_there(kind: Any, candidates: int | None) -> None:
    """Whether its score or an end is NaN, or an end is infinite; also where the best few are looked at."""
    nan, inf = math.nan, math.inf
    odd = torch.tensor([[0.0, 9.0], [nan, 9.0], [0.0, nan], [nan, nan], [0.0, inf], [-inf, 9.0]], dtype=torch.float64)
    scores = torch.cat([torch.tensor([[nan, 0.95, 0.95, 0.85, 0.7, -inf]]), SCORES], dim=1)
    how = Suppression(kind, threshold=0.75, voting=0.7, candidates=candidates)
    for ours, theirs in zip(suppress(scores, torch.cat([odd, SPANS]), 9, how), suppress(SCORES, SPANS, 9, how)):  # noqa: B905
        assert ours.isfinite().sum() == theirs.isfinite().sum() > 0
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_hard_suppression_is_the_default() -> None:
    torch.manual_seed(0)
    scores, spans = torch.rand(3, 40), torch.rand(3, 40, 2, dtype=torch.float64).sort(dim=2).values
    kept = scores.clone()
    for ours, theirs in zip(suppress(scores, spans, 9, Suppression(threshold=0.3)), top_spans(scores, spans, 9, 0.3)):  # noqa: B905
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    assert torch.equal(scores, kept)


def one_by_one(scores: list[float], spans: list[list[float]], sigma: float, voting: float, limit: int) -> list[Any]:
    """Soft suppression and voting as written down: candidates in a list, one at a time."""

    def overlap(a: list[float], b: list[float]) -> float:
        shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
        return shared / (a[1] - a[0] + b[1] - b[0] - shared)

    left, found = dict(enumerate(scores)), []
    while left and len(found) < limit:
        best = max(left, key=lambda each: left[each])
        span, score = spans[best], left.pop(best)
        left = {each: value * math.exp(-(overlap(span, spans[each]) ** 2) / sigma) for each, value in left.items()}
        votes = [(scores[each], other) for each, other in enumerate(spans) if overlap(span, other) >= voting]
        total = sum(weight for weight, _ in votes)
        found.append([*(sum(weight * other[end] for weight, other in votes) / total for end in (0, 1)), score])
    return found


@pytest.mark.parametrize("chunk", [1, 1 << 17])
def test_soft_suppression_of_many_queries_at_once(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """All queries together, or in chunks, are each as if alone."""
    monkeypatch.setitem(_CHUNK_CELLS, "cpu", chunk)
    torch.manual_seed(0)
    scores, spans = torch.rand(5, 30).double(), torch.rand(5, 30, 2, dtype=torch.float64).sort(dim=2).values
    found, best = suppress(scores, spans, 6, Suppression("soft", sigma=0.4, voting=0.6))
    for row in range(5):
        expected = torch.tensor(one_by_one(scores[row].tolist(), spans[row].tolist(), 0.4, 0.6, 6))
        torch.testing.assert_close(torch.cat([found[row], best[row, :, None]], dim=1).float(), expected)


def test_slack() -> None:
    """0.8 in float64 lies above 8 / 10 less a rounding error: with slack it equals it."""
    how = Suppression("hard", threshold=0.8 - 1e-12, voting=0.8 + 1e-12)
    assert order(how) == [0, 2, 3]
    exact = replace(how, slack=1e-9)
    found, _ = suppress(SCORES, SPANS, 2, exact)
    assert found[0].tolist() == [[0.0, pytest.approx((9 + 6.4) / 1.7)]] * 2
