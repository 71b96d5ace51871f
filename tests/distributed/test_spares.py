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
from cdn_tune.distributed.group import WorkerGroup
from cdn_tune.distributed.spares import Spares
from cdn_tune.errors import CdnTuneError
from tests.distributed.group_actors import group_actors, left_behind, train_workers
from tests.tuning.clusters import wait_for

Tiny = Callable[..., Experiment]


class Holder:
    """An actor that runs groups one after the other, as the process of a search's trials does."""

    def __init__(self, seconds: float = 60.0) -> None:
        self.spares: Spares | None = Spares(seconds)

    def train(self, experiment: dict[str, Any], folder: Path, epochs: int = 99, **more: Any) -> list[float]:
        """Returns the losses of a trial that is stopped early after so many epochs, or why it failed."""
        trial = Experiment.model_validate(experiment, strict=False)
        group = WorkerGroup(trial, folder, ResourcesConfig(workers=2), spares=self.spares, **more)
        losses: list[float] = []
        try:
            while len(losses) < epochs and (report := group.next_report()) is not None:
                losses.append(report["loss"])
        except CdnTuneError:
            losses.append(-1.0)
        finally:
            assert group.stop()
        return losses

    def free(self) -> None:
        assert self.spares is not None
        self.spares.free()


@pytest.fixture
def start(ray_session: None) -> Iterator[Callable[..., Any]]:
    """Starts a holder whose spares wait so long."""
    from cdn_tune.distributed.ray import ray

    holders = []

    def make(seconds: float = 60.0) -> Any:
        holders.append(ray.remote(num_cpus=0)(Holder).remote(seconds))
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
    """After a trial of another model, whatever that has left in the process; until one is stopped early, or fails."""
    holder = start()
    first, other = tiny(**{"train.epochs": 2}).plain(), tiny(**{"train.epochs": 1, "model.map.layers": 2}).plain()
    expected = get(holder.train.remote(first, tmp_path / "0"))
    processes = train_workers()
    assert len(expected) == len(processes) == 2
    assert len(get(holder.train.remote(other, tmp_path / "1"))) == 1
    assert get(holder.train.remote(first, tmp_path / "2")) == expected
    assert train_workers() == processes
    assert group_actors() == ["RayTrainWorker", "RayTrainWorker"]  # no queue, no barrier, no watcher is left

    endless = tiny(**{"train.epochs": 500}).plain()
    assert len(get(holder.train.remote(endless, tmp_path / "3", epochs=1))) == 1
    assert left_behind() == ([], 0)


def test_workers_of_a_failed_trial_end(start: Callable[..., Any], tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"optim.lr": 1e30, "optim.name": "adamw", "optim.weight_decay": 1e9})
    assert get(start().train.remote(experiment.plain(), tmp_path))[-1] == -1.0
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


def test_workers_end_when_no_trial_follows(start: Callable[..., Any], tiny: Tiny, tmp_path: Path) -> None:
    holder = start(seconds=2.0)
    get(holder.train.remote(tiny(**{"train.epochs": 1}).plain(), tmp_path))
    assert len(group_actors()) == 2
    assert left_behind() == ([], 0)


def test_workers_make_room_for_whoever_waits(start: Callable[..., Any], tiny: Tiny, tmp_path: Path) -> None:
    """Another trial, or another's job, whose place they would hold."""
    from ray.util.placement_group import placement_group

    from cdn_tune.distributed.ray import ray, remove_placement_group, waits_for_place

    holder = start()
    trial = holder.train.remote(tiny(**{"train.epochs": 4}).plain(), tmp_path)
    wait_for(lambda: len(train_workers()) == 2, 60)
    everything = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    try:
        assert waits_for_place()
        assert len(get(trial)) == 4
        assert everything.wait(20)
        assert left_behind(1) == ([], 1)
    finally:
        remove_placement_group(everything)


class Group:
    """Stands for a group that is kept."""

    workers = ()

    def __init__(self) -> None:
        self.ended = 0

    def shutdown(self) -> None:
        self.ended += 1


@pytest.mark.usefixtures("ray_session")
def test_spares_hold_one_group() -> None:
    spares, groups = Spares(60.0), [Group(), Group(), Group()]
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


def test_a_group_that_was_taken_does_not_expire() -> None:
    spares, taken, left = Spares(0.2), Group(), Group()
    spares.leave(("two",), taken)
    assert spares._let_go() is not None
    spares.leave(("two",), left)
    wait_for(lambda: left.ended == 1, 10)
    time.sleep(0.3)
    assert (taken.ended, left.ended) == (0, 1)
