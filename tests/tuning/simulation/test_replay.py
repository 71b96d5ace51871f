"""A search recorded on real Ray, replayed with its seed on the virtual engine: the same decisions in the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.data.planted import plant
from cdn_tune.distributed.ray import ray
from cdn_tune.tuning.checkpoints.retention import Retention
from cdn_tune.tuning.driver import Driver
from cdn_tune.tuning.engine.door import Answer, Assignment, Room
from cdn_tune.tuning.engine.virtual.engine import CurvePoint, VirtualEngine, World
from cdn_tune.tuning.engine.virtual.files import Flag, MemoryFiles
from cdn_tune.tuning.results.record import Record
from cdn_tune.tuning.simulation.curves import curves_of
from cdn_tune.tuning.simulation.simulate import Simulated, checked, landscape_of, simulate
from cdn_tune.tuning.study.study import Study
from tests.fixtures.make_runs import PLANT

from .recorded import TRIALS, decided, makespan, record_search, unpacked


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Record]:
    """Searches at one slot and at two, by slots."""
    return unpacked(tmp_path_factory.mktemp("recorded"))


def replay(record: Record, slots: int, seed: int = 0) -> Simulated:
    """Simulates a recorded search over its own curves, with its seed if `seed` is 0."""
    curves = curves_of(record)
    base, _ = checked(record.space, record.base, curves)
    return simulate(record.space, base, landscape_of(record.space, base, curves), seed, slots, TRIALS)


def check_decisions(record: Record, found: Simulated) -> None:
    real = decided(record)
    assert [(number, epoch, value) for number, epoch, value, _ in found.decisions] == real.reports
    assert [(number, epoch) for number, epoch, _, stopped in found.decisions if stopped] == real.stopped
    assert real.stopped, "nothing was stopped: the record shows little"


def test_a_recorded_search_replayed_with_its_seed_decides_the_same_in_the_same_order(
    records: dict[int, Record],
) -> None:
    check_decisions(records[1], replay(records[1], 1))


def test_another_seed_decides_otherwise(records: dict[int, Record]) -> None:
    with pytest.raises(AssertionError):
        check_decisions(records[1], replay(records[1], 1, seed=1))


@pytest.mark.parametrize("slots", [1, 2])
def test_makespan_is_that_of_the_record_within_a_twentieth(slots: int, records: dict[int, Record]) -> None:
    assert replay(records[slots], slots).seconds == pytest.approx(makespan(records[slots]), rel=0.05)


class _InOrder:
    """A driver that assigns a trial no earlier than the record has it, counted in reports."""

    def __init__(self, driver: Driver, before: Sequence[int], world: World) -> None:
        self._driver, self._before, self._world = driver, before, world

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def next(self, room: Room) -> Assignment | Answer:
        proposed = len(self._driver.study.entries())
        if proposed < len(self._before) and self._before[proposed] > self._world.clock.now:
            return Answer.WAIT
        return self._driver.next(room)


def in_order(record: Record, slots: int) -> tuple[Study, VirtualEngine]:
    """Replays a recorded search whose n-th report, over all trials, comes after n seconds."""
    real, world = decided(record), World(nodes={0: slots})
    moments = {
        number: [place for place, each in enumerate(real.reports, start=1) if each[0] == number]
        for number in range(len(real.params))
    }

    def curve(number: int, _: Mapping[str, Any]) -> list[CurvePoint]:
        reached = list(record.entries[number].intermediate_values.values())
        val = [*reached, *[reached[-1]] * (record.base.train.epochs - len(reached))]
        ends = moments[number]
        ends = [*ends, *(10_000.0 + ends[-1] + more for more in range(len(val) - len(ends)))]  # never, if it is stopped
        seconds = [ends[0] - world.clock.now, *(later - sooner for sooner, later in pairwise(ends))]
        return [CurvePoint({record.metric: value}, each) for value, each in zip(val, seconds, strict=True)]

    study = Study("memory", record.space, record.base, clock=world.clock)
    study.begin()
    retention = Retention(MemoryFiles(world), record.space.keep)
    driver = Driver(study, TRIALS, retention, world.clock, Flag())
    driver.start()
    engine = VirtualEngine(curve, world)
    engine.run(_InOrder(driver, real.before, world))
    return study, engine


def check_in_order(record: Record, slots: int) -> None:
    study, engine = in_order(record, slots)
    real = decided(record)
    trials = study.entries()
    for trial, params in zip(trials, real.params, strict=True):
        assert trial.params == pytest.approx(params, rel=1e-9)  # processors round otherwise than the record's
    assert [trial.state for trial in trials] == [trial.state for trial in record.entries]
    assert [trial.intermediate_values for trial in trials] == [trial.intermediate_values for trial in record.entries]
    assert [number for _, what, number in engine.log if what == "stopped"] == [number for number, _ in real.stopped]


@pytest.mark.parametrize("slots", [1, 2])
def test_events_in_the_recorded_order_lead_to_the_recorded_decisions(slots: int, records: dict[int, Record]) -> None:
    check_in_order(records[slots], slots)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("slots", [1, 2])
def test_a_search_on_ray_is_replayed(slots: int, tmp_path: Path) -> None:
    plant(tmp_path / "data", **PLANT)  # type: ignore[arg-type]
    record = record_search(tmp_path, tmp_path / "data", slots, int(ray.cluster_resources()["CPU"]))
    check_in_order(record, slots)
    if slots == 1:
        found = replay(record, slots)
        check_decisions(record, found)
        assert found.seconds == pytest.approx(makespan(record), rel=0.05)
