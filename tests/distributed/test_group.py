"""Several workers: the same training as one, the same evaluation, errors with their reason, nothing left behind."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.config import Experiment, ResourcesConfig
from cdn_tune.distributed.cluster import connected, slots
from cdn_tune.distributed.group import WorkerGroup, _unfit, make_queue
from cdn_tune.distributed.launch import train_on_workers
from cdn_tune.errors import ClusterError, DataError, NodeUnfit, NotFinite
from cdn_tune.training.reports import EpochReport
from cdn_tune.training.train_trial import train_in
from tests.distributed.group_actors import group_actors, left_behind, train_workers
from tests.tuning.clusters import wait_for

Tiny = Callable[..., Experiment]


@pytest.mark.usefixtures("ray_session")
def test_two_workers_train_as_one(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"train.epochs": 2, "model.map.mixing_dropout": 0.0})
    one: list[EpochReport] = []
    two: list[EpochReport] = []
    train_in(experiment, tmp_path / "one", one.append)
    train_on_workers(experiment, tmp_path / "two", 2, two.append)
    assert [report.epoch for report in two] == [1, 2]
    for single, double in zip(one, two, strict=True):
        assert double.loss == pytest.approx(single.loss, rel=1e-4)
        assert double.val == pytest.approx(single.val, abs=1e-9)
    assert not (tmp_path / "two" / ".ray").exists()


@pytest.mark.usefixtures("ray_session")
def test_an_error_on_a_worker_is_told_once_and_not_retried(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"optim.lr": 1e30, "optim.name": "adamw", "optim.weight_decay": 1e9})
    group = WorkerGroup(experiment, tmp_path, ResourcesConfig(workers=2), max_failures=5)
    try:
        with pytest.raises(NotFinite, match=r"learning rate 1e\+30"):
            group.next_report()
    finally:
        group.stop()
        group.stop()  # twice does no harm


@pytest.mark.usefixtures("ray_session")
def test_a_queue_that_is_lent_stays_and_what_lies_in_it_is_not_taken_for_a_report(tiny: Tiny, tmp_path: Path) -> None:
    queue = make_queue()
    try:
        queue.put(("of a former group", "report", {"epoch": 99}))
        group = WorkerGroup(tiny(**{"train.epochs": 1}), tmp_path, ResourcesConfig(workers=2), queue=queue)
        try:
            report = group.next_report()
            assert report is not None
            assert report["epoch"] == 1
            assert group.next_report() is None
        finally:
            group.stop()
        assert queue.qsize() == 0
    finally:
        queue.shutdown(force=True)


class Holder:
    """An actor that holds a group, as a trial does."""

    def stop_after(self, experiment: dict[str, Any], folder: Path, seconds: float) -> bool:
        self._start(experiment, folder)
        time.sleep(seconds)
        return self._group.stop()

    def first_report(self, experiment: dict[str, Any], folder: Path) -> int:
        self._start(experiment, folder)
        report = self._group.next_report()
        assert report is not None
        epoch: int = report["epoch"]
        return epoch

    def stop(self) -> bool:
        return self._group.stop()

    def _start(self, experiment: dict[str, Any], folder: Path) -> None:
        trial = Experiment.model_validate(experiment, strict=False)
        self._group = WorkerGroup(trial, folder, ResourcesConfig(workers=2))


@pytest.fixture
def holder(ray_session: None) -> Iterator[Any]:
    from cdn_tune.distributed.ray import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module
    actor = ray.remote(num_cpus=0)(Holder).remote()
    yield actor
    ray.kill(actor)
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_a_group_in_an_actor_ends_at_any_moment(holder: Any, tiny: Tiny, tmp_path: Path) -> None:
    """Before it has begun, while its workers start, while they train."""
    from cdn_tune.distributed.ray import ray

    experiment = tiny(**{"train.epochs": 500}).plain()
    for moment in (0.0, 0.3, 1.0, 2.5, 9.0):
        assert ray.get(holder.stop_after.remote(experiment, tmp_path / f"{moment}", moment), timeout=60)
        assert left_behind() == ([], 0), moment


def test_a_group_in_an_actor_ends_while_it_waits_for_a_place(holder: Any, tiny: Tiny, tmp_path: Path) -> None:
    from ray.util.placement_group import placement_group

    from cdn_tune.distributed.ray import ray, remove_placement_group

    held = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    try:
        assert held.wait(60)
        assert ray.get(holder.stop_after.remote(tiny().plain(), tmp_path, 4.0), timeout=60)
        assert left_behind(1) == ([], 1)
    finally:
        remove_placement_group(held)


def test_workers_that_are_given_up_end_without_their_holder(holder: Any, tiny: Tiny, tmp_path: Path) -> None:
    """The driver of a search gives a trial up; who holds the group may hear of it much later."""
    from cdn_tune.distributed.ray import ray

    experiment = tiny(**{"train.epochs": 500}).plain()
    assert ray.get(holder.first_report.remote(experiment, tmp_path), timeout=120) == 1
    assert len(train_workers()) == 2
    assert group_actors() == ["RayTrainWorker", "RayTrainWorker", "_QueueActor"], "a process that no group needs"
    WorkerGroup.give_up(tmp_path)
    wait_for(lambda: train_workers() == [], 30)
    assert ray.get(holder.stop.remote(), timeout=60)
    assert left_behind() == ([], 0)
    assert not (tmp_path / ".given-up").exists()


@pytest.mark.usefixtures("ray_session")
def test_a_killed_worker_costs_no_epoch(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"train.epochs": 6, "model.map.mixing_dropout": 0.0})
    whole: list[EpochReport] = []
    train_in(experiment, tmp_path / "one", whole.append)
    killed: list[int] = []
    group = WorkerGroup(experiment, tmp_path / "two", ResourcesConfig(workers=2), max_failures=2)
    told: dict[int, float] = {}
    try:
        while (report := group.next_report()) is not None:
            told[report["epoch"]] = report["loss"]
            if report["epoch"] == 2 and not killed:
                killed = train_workers()
                os.kill(killed[0], signal.SIGKILL)
    finally:
        group.stop()
    assert len(killed) == 2
    assert list(told) == [1, 2, 3, 4, 5, 6]
    assert list(told.values()) == pytest.approx([report.loss for report in whole], rel=1e-4)


def test_an_error_in_the_data_is_the_nodes_if_they_have_gone() -> None:
    """Workers outlive trials, so what they have checked once may be so no more."""
    unfit, error = NodeUnfit("f" * 56, "node-2: no features"), DataError("features.hdf5: no such file")

    def check(*, again: bool = False) -> None:
        if again:
            raise unfit

    assert _unfit(error, check) is unfit
    assert _unfit(error, lambda again=False: None) is error  # noqa: ARG005
    assert _unfit(error, None) is error
    assert isinstance(_unfit(NotFinite("loss"), check), NotFinite)


@pytest.mark.parametrize(
    ("resources", "nodes", "expected"),
    [
        ({"workers": 1}, [{"CPU": 2.0}], 2),
        ({"workers": 2, "cpus_per_worker": 2}, [{"CPU": 10.0}], 2),
        ({"workers": 1, "gpus_per_worker": 0.5}, [{"CPU": 16.0, "GPU": 2.0}], 4),
        ({"workers": 1, "gpus_per_worker": 0.4}, [{"CPU": 16.0, "GPU": 2.0}], 4),  # a share lies on one GPU
        ({"workers": 4, "gpus_per_worker": 1.0}, [{"CPU": 64.0, "GPU": 8.0}], 2),
        ({"workers": 1, "cpus_per_worker": 2}, [{"CPU": 3.0}, {"CPU": 3.0}], 2),  # not three of the six CPUs
        ({"workers": 3}, [{"CPU": 2.0}, {"CPU": 2.0}], 1),
    ],
)
def test_slots(resources: dict[str, Any], nodes: list[dict[str, float]], expected: int) -> None:
    assert slots(ResourcesConfig(**resources), nodes) == expected


def test_what_never_fits_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"needs 1 x 1 CPUs and 1 GPUs, .*resources\.gpus_per_worker=0"):
        slots(ResourcesConfig(gpus_per_worker=1.0), [{"CPU": 2.0}])
    with pytest.raises(ClusterError, match=r"needs 3 x 2 CPUs, .* room for 2 of them .*lower --workers"):
        slots(ResourcesConfig(workers=3, cpus_per_worker=2), [{"CPU": 4.0}])


@pytest.mark.usefixtures("ray_session")
def test_a_running_ray_is_used_and_left_running() -> None:
    from cdn_tune.distributed.ray import ray

    with connected() as resources:
        assert resources["CPU"] >= 1
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("address", "told"),
    [("127.0.0.1:1", "nothing answers there"), ("somewhere", "write auto, HOST:PORT"), ("host:port", "write auto")],
)
def test_a_wrong_address_is_told_at_once(address: str, told: str) -> None:
    from cdn_tune.distributed.address import check_join

    with pytest.raises(ClusterError, match=told):
        check_join(address)
