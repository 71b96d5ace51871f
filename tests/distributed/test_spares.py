"""Workers that go from one trial's group to the next: the same numbers, and none that holds a place for nothing."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.config import Experiment, ResourcesConfig
from cdn_tune.distributed import warm_workers as spares_module
from cdn_tune.distributed.group import WorkerGroup
from cdn_tune.distributed.warm_workers import Spares
from cdn_tune.errors import CdnTuneError
from tests.distributed.group_actors import group_actors, left_behind, train_workers
from tests.tuning.clusters import wait_for

Tiny = Callable[..., Experiment]


class Holder:
    """An actor that runs groups one after the other, as the process of a search's trials does."""

    def __init__(self, **options: Any) -> None:
        self.spares = Spares(**{"seconds": 60.0, **options})

    def train(self, experiment: dict[str, Any], folder: Path, **more: Any) -> list[float]:
        """Returns the losses of a trial's epochs, with -1 for its failure."""
        trial = Experiment.model_validate(experiment, strict=False)
        group = WorkerGroup(trial, folder, ResourcesConfig(workers=2), spares=self.spares, **more)
        losses: list[float] = []
        try:
            while (report := group.next_report()) is not None:
                losses.append(report["loss"])
        except CdnTuneError:
            losses.append(-1.0)
        finally:
            assert group.stop()
        return losses

    def free(self) -> None:
        self.spares.free()


@pytest.fixture
def start(ray_session: None) -> Iterator[Callable[..., Any]]:
    """Starts a holder with such spares."""
    from cdn_tune.distributed.ray import ray

    holders = []

    def make(**options: Any) -> Any:
        holders.append(ray.remote(num_cpus=0)(Holder).remote(**options))
        return holders[-1]

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module
    yield make
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    for holder in holders:
        ray.kill(holder)


def get(task: Any) -> Any:
    from cdn_tune.distributed.ray import ray

    return ray.get(task, timeout=120)


def test_workers_go_on_and_train_as_new_ones(start: Callable[..., Any], tiny: Tiny, tmp_path: Path) -> None:
    """After a trial of another model, whatever that has left in the process; until one fails."""
    holder = start()
    first, other = tiny(**{"train.epochs": 2}).plain(), tiny(**{"train.epochs": 1, "model.map.layers": 2}).plain()
    expected = get(holder.train.remote(first, tmp_path / "0"))
    processes = train_workers()
    assert len(expected) == len(processes) == 2
    assert len(get(holder.train.remote(other, tmp_path / "1"))) == 1
    assert get(holder.train.remote(first, tmp_path / "2")) == expected
    assert train_workers() == processes
    wait_for(lambda: group_actors() == ["RayTrainWorker", "RayTrainWorker"], 20)  # no queue, no barrier, no watcher

    broken = tiny(**{"optim.lr": 1e30, "optim.name": "adamw", "optim.weight_decay": 1e9}).plain()
    assert get(holder.train.remote(broken, tmp_path / "3"))[-1] == -1.0
    assert left_behind() == ([], 0)


def test_workers_that_will_not_do_are_replaced(start: Callable[..., Any], tiny: Tiny, tmp_path: Path) -> None:
    """They were placed where the trial must not be, or one is dead: it costs the trial no failure."""
    holder, experiment = start(), tiny(**{"train.epochs": 1}).plain()
    expected = get(holder.train.remote(experiment, tmp_path / "first"))
    first = train_workers()
    assert get(holder.train.remote(experiment, tmp_path / "elsewhere", avoid=("0" * 56,))) == expected
    elsewhere = train_workers()
    os.kill(elsewhere[0], signal.SIGKILL)
    assert get(holder.train.remote(experiment, tmp_path / "after a death", avoid=("0" * 56,))) == expected
    assert len({*first, *elsewhere, *train_workers()}) == 6
    get(holder.free.remote())
    assert left_behind() == ([], 0)


@pytest.mark.slow
def test_workers_that_do_not_answer_are_replaced(start: Callable[..., Any], tiny: Tiny, tmp_path: Path) -> None:
    holder, experiment = start(), tiny(**{"train.epochs": 1}).plain()
    expected = get(holder.train.remote(experiment, tmp_path / "first"))
    silent = train_workers()
    os.kill(silent[0], signal.SIGSTOP)
    try:
        assert get(holder.train.remote(experiment, tmp_path / "second")) == expected
        assert len({*silent, *train_workers()}) == 4
        get(holder.free.remote())
        assert left_behind() == ([], 0)
    finally:
        if Path(f"/proc/{silent[0]}").exists():
            os.kill(silent[0], signal.SIGKILL)


def test_workers_make_room_for_whoever_waits(start: Callable[..., Any], tiny: Tiny, tmp_path: Path) -> None:
    """At the end of a trial; where one waits all the time, so that an autoscaler sees it, only if no trial follows."""
    from ray.util.placement_group import placement_group

    from cdn_tune.distributed.ray import ray, remove_placement_group, waiting_groups

    everything = [{"CPU": ray.cluster_resources()["CPU"]}]
    experiment = tiny(**{"train.epochs": 4}).plain()
    groups = []
    try:
        trial = start().train.remote(experiment, tmp_path / "0")
        wait_for(lambda: len(train_workers()) == 2, 60)
        groups.append(placement_group(everything))
        assert waiting_groups() == (1, 0)
        assert len(get(trial)) == 4
        assert groups[0].wait(20)
        assert left_behind(1) == ([], 1)
        remove_placement_group(groups.pop())

        trial = start(waiting=1).train.remote(experiment, tmp_path / "1")
        wait_for(lambda: len(train_workers()) == 2, 60)
        groups.append(placement_group(everything))
        assert len(get(trial)) == 4
        assert len(train_workers()) == 2
        assert groups[0].wait(20)  # for no trial follows
    finally:
        for group in groups:
            remove_placement_group(group)
    assert left_behind() == ([], 0)


class Group:
    """Stands for a group that is kept."""

    workers = ()

    def __init__(self) -> None:
        self.ended = 0

    def shutdown(self) -> None:
        self.ended += 1


@pytest.fixture
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares_module, "waiting_groups", lambda: (0, 0))


@pytest.mark.usefixtures("ray_session", "nobody_waits")
def test_spares_hold_one_group() -> None:
    spares, groups = Spares(seconds=60.0), [Group(), Group(), Group()]
    assert spares.take(("two",)) is None
    spares.leave(("two",), groups[0])
    spares.leave(("two",), groups[1])
    assert [group.ended for group in groups] == [1, 0, 0]
    assert spares.take(("two",)) is groups[1]
    assert spares.take(("two",)) is None  # it is handed over once
    spares.leave(("two",), groups[1])
    assert spares.take(("three",)) is None
    assert [group.ended for group in groups] == [1, 1, 0]
    spares.leave(("two",), groups[2])
    spares.free()
    spares.free()
    assert [group.ended for group in groups] == [1, 1, 1]


@pytest.mark.usefixtures("ray_session", "nobody_waits")
def test_only_what_was_left_for_long_ends() -> None:
    """Neither what was taken meanwhile nor what was left in its place."""
    spares, taken, left = Spares(seconds=0.3), Group(), Group()
    spares.leave(("two",), taken)
    assert spares.take(("two",)) is taken
    spares._seconds = 1.5
    spares.leave(("two",), left)
    time.sleep(0.8)
    assert (taken.ended, left.ended) == (0, 0)
    wait_for(lambda: left.ended == 1, 10)
    assert taken.ended == 0


def test_a_head_that_does_not_answer_ends_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers are not kept then, and that is all."""

    def unknown() -> tuple[int, int]:
        raise RuntimeError("the GCS is away")

    monkeypatch.setattr(spares_module, "waiting_groups", unknown)
    assert not Spares().may_stay()
