"""Which queries are shown first, and which mistakes are listed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cdn_tune.evaluation.queries import QueryResult
from cdn_tune.report.answers import _threshold
from cdn_tune.report.cases import LISTED, Mistakes, choose_cases, choose_mistakes

Moment = tuple[float, float, float]


def result(at: int, *moments: Moment, truth: tuple[float, float] = (0.0, 10.0), iou: float = 0.0, **more: Any) -> Any:
    return QueryResult(str(at), "v", "q", 100.0, truth, tuple(moments), iou, "test", **more)


def positions(found: Sequence[Any]) -> list[int]:
    return [each.at for each in found]


def test_cases_are_the_best_the_worst_and_those_in_the_middle() -> None:
    ious = [0.1, 0.9, 0.5, 0.4, 0.6, 0.0, 1.0]
    queries = [result(at, (0.0, 1.0, 0.5), iou=iou) for at, iou in enumerate(ious)]
    cases = choose_cases(queries, 2, seed=0)
    assert cases.best == [6, 1]
    assert cases.worst == [5, 0]
    assert cases.typical == [2, 3]  # the median is 0.5
    assert len(set(cases.sample)) == 2
    assert cases == choose_cases(queries, 2, seed=0)
    assert cases.positions()[:3] == [5, 6, 2]


def test_mistakes_are_the_confident_the_late_and_the_close() -> None:
    right, wrong, close = (0.0, 9.0), (50.0, 60.0), (0.0, 4.5)  # IoU 0.9, 0 and 0.45
    queries = [
        result(0, (*wrong, 0.3)),
        result(1, (*right, 0.99), (*wrong, 0.5)),  # right
        result(2, (*wrong, 0.9), (*wrong, 0.8), (*right, 0.7)),
        result(3, (*close, 0.6), (*right, 0.5)),
        result(4),  # no answer
        result(5, (*wrong, 0.95), truth=(0.0, 0.0)),  # nothing answers this sentence
        result(6, (*wrong, 0.8), *[(*wrong, 0.5)] * 4, (*right, 0.4)),  # right at rank 6
    ]
    found = choose_mistakes(queries, 0.5)
    assert positions(found.confident) == [2, 6, 3, 0]
    assert [(each.at, each.rank, each.score) for each in found.late] == [(3, 2, 0.5), (2, 3, 0.7)]
    assert [each.iou for each in found.late] == pytest.approx([0.9, 0.9])
    assert positions(found.close) == [3]
    assert found.close[0].iou == pytest.approx(0.45)
    assert choose_mistakes(queries, 0.3).close == []


def test_any_of_several_annotated_moments_counts() -> None:
    queries = [result(0, (50.0, 60.0, 0.9), others=((50.0, 60.0),)), result(1, (50.0, 60.0, 0.8))]
    assert positions(choose_mistakes(queries, 0.5).confident) == [1]


def test_lists_are_short_and_positions_have_some_of_each() -> None:
    queries = [result(at, (50.0, 60.0, at / 100), (0.0, 10.0, 0.0)) for at in range(3 * LISTED)]
    found = choose_mistakes(queries, 0.5)
    assert positions(found.confident) == list(range(3 * LISTED - 1, 2 * LISTED - 1, -1))
    assert len(found.late) == LISTED
    shown = choose_cases(queries, 2, 0).positions(found)
    assert len(shown) == len(set(shown))
    assert set(positions(found.confident + found.late)) <= set(shown)
    assert choose_mistakes([], 0.5) == Mistakes(0.5)


@pytest.mark.parametrize(
    ("metric", "threshold"), [("R1@0.7", 0.7), ("mIoU", 0.5), ("R5@0.3", 0.3), ("R1@x", 0.5), ("R1@7", 0.5)]
)
def test_the_threshold_is_that_of_the_runs_metric(metric: str, threshold: float) -> None:
    assert _threshold(metric) == threshold
