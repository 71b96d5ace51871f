"""The attributes that reports bring."""

from dataclasses import replace

from cdn_tune.training.runs.pace import Pace
from cdn_tune.tuning.engine.door import TrialReport
from cdn_tune.tuning.engine.virtual.engine import CurvePoint, VirtualEngine, _Attempt
from cdn_tune.tuning.study.attributes import ReportAttributes


def report(epoch: int = 1) -> TrialReport:
    """Makes the report of an epoch of two."""
    curve = [CurvePoint({"R1@0.5": 0.1}), CurvePoint({"R1@0.5": 0.2})]
    engine, attempt = VirtualEngine(lambda *_: curve), _Attempt(0, 0, curve, 0.0, Pace("epoch", 0, 0.0), None)
    for _ in range(epoch):
        found = engine._as_report(attempt)
        attempt.history.append(found.epoch)
    return found


def test_segments_follow_each_nodes_own_clock() -> None:
    """A trial that moves to a node whose clock is minutes behind has two segments, each as long as it took."""
    attributes = ReportAttributes(by_query=False)
    for name, times, each in (("a", [1000.0, 1010.0, 1020.0], 10.0), ("b", [700.0, 705.0], 5.0), ("b", [900.0], 5.0)):
        for spent, end in enumerate(times, start=1):
            found = attributes.of(0, spent, replace(report(), node=name, began=end - each * spent, at=end))
    assert found["segments"] == [["a", 990.0, 1020.0], ["b", 695.0, 705.0], ["b", 895.0, 900.0]]


def test_val_is_that_of_the_best_epoch_and_latency_that_of_the_fastest() -> None:
    attributes = ReportAttributes(by_query=True)
    first, second = report(1), report(2)
    slow = replace(first, epoch=replace(first.epoch, val_seconds=4.0, val_queries=2, query_ious="packed"))
    found = attributes.of(0, 1, slow)
    assert (found["latency_ms"], found["val"], found["query_ious:1"]) == (2000.0, {"R1@0.5": 0.1}, "packed")
    worse = replace(second, epoch=replace(second.epoch, best_epoch=1, val_seconds=1.0, val_queries=1))
    found = attributes.of(0, 2, worse)
    assert found["latency_ms"] == 1000.0
    assert "val" not in found
    assert "query_ious:2" not in found
