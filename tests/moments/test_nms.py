"""Suppression of overlapping moments: hard, soft, by votes."""

import math

import pytest
import torch

from cdn_tune.moments.nms import Suppression, suppress, top_spans

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


def test_hard_suppression_is_the_default() -> None:
    torch.manual_seed(0)
    scores, spans = torch.rand(3, 40), torch.rand(3, 40, 2, dtype=torch.float64).sort(dim=2).values
    kept = scores.clone()
    for ours, theirs in zip(suppress(scores, spans, 9, Suppression(threshold=0.3)), top_spans(scores, spans, 9, 0.3)):  # noqa: B905
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    assert torch.equal(scores, kept)
