"""Groups of workers: the same training as one, one trial after the other, errors with their reason, nothing left."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cdn_tune.config import Experiment, ResourcesConfig
from cdn_tune.distributed.cluster import connected, slots
from cdn_tune.distributed.group_coordinator import FAILED, FINISHED, LOST, NODE, REPORT, WORKER, RunStatus
from cdn_tune.distributed.group_pool import Decision, GroupPool, GroupView, Losses, decide
from cdn_tune.distributed.group_worker import _unfit
from cdn_tune.distributed.launch import train_on_workers
from cdn_tune.distributed.ray import ActorUnavailableError, RayActorError
from cdn_tune.errors import ClusterError, NodeUnfit, NotFinite
from cdn_tune.training.reports import EpochReport
from cdn_tune.training.train_trial import train_in
from tests.distributed.group_actors import left_behind, train_workers
from tests.tuning.clusters import wait_for

Tiny = Callable[..., Experiment]
UP = RunStatus(nodes=("a", "b"), is_up=True)


def view(placed: bool = True, avoid: tuple[str, ...] = (), **status: Any) -> GroupView:
    return GroupView(RunStatus(**{"nodes": ("a", "b") if placed else (), "is_up": placed, **status}), avoid, placed)


def plan(groups: Sequence[GroupView], wanted: int, **more: Any) -> Decision:
    settings: dict[str, Any] = {"avoid": (), "queued": 0, "asleep": 0, "others_wait": False, **more}
    return decide(dict(enumerate(groups)), wanted, **settings)


BUSY, PENDING = view(is_busy=True), view(placed=False)


@pytest.mark.parametrize(
    ("groups", "wanted", "more", "expected"),
    [
        ([], 2, {}, Decision(start=2)),
        ([BUSY, view()], 2, {}, Decision()),
        ([BUSY, PENDING], 3, {}, Decision(start=1)),
        ([view(is_busy=True, is_closing=True)], 1, {}, Decision(start=1)),
        # The cluster has shrunk: first whoever has no place, then the newest without a trial, never one that trains.
        ([BUSY, view(), PENDING], 2, {}, Decision(end=(2,), evict=(2,))),
        ([BUSY, view(), view()], 2, {}, Decision(end=(2,))),
        ([BUSY, BUSY], 1, {}, Decision()),
        # A node is unfit: what is on it ends after its trial, what waits keeps clear of it from the start.
        ([view()], 1, {"avoid": ("b",)}, Decision(end=(0,), start=1)),
        ([view()], 1, {"avoid": ("c",)}, Decision()),
        ([BUSY], 1, {"avoid": ("b",)}, Decision()),
        ([PENDING], 1, {"avoid": ("b",)}, Decision(end=(0,), evict=(0,), start=1)),
        ([view(placed=False, avoid=("b",))], 1, {"avoid": ("b",)}, Decision()),
        ([view(placed=False, avoid=("b",))], 1, {}, Decision(end=(0,), evict=(0,), start=1)),
        # Without a trial for some time: room for others, until there is a trial again.
        ([view(idle=4.0)], 1, {}, Decision()),
        ([view(idle=4.0)], 1, {"others_wait": True}, Decision(end=(0,), asleep=1)),
        ([view(idle=4.0)], 1, {"others_wait": True, "queued": 1}, Decision()),
        ([view(idle=21.0), BUSY], 2, {}, Decision(end=(0,), asleep=1)),
        ([BUSY], 2, {"asleep": 1}, Decision(asleep=1)),
        ([BUSY], 2, {"asleep": 1, "queued": 1}, Decision(start=1)),
        ([view(), PENDING], 4, {"asleep": 2, "queued": 3}, Decision(start=1, asleep=1)),
        ([BUSY], 1, {"asleep": 1}, Decision()),
        # What hangs, or ends in vain, loses its place; not again before that could help.
        ([view(is_busy=True, hung=31.0)], 1, {}, Decision(evict=(0,))),
        ([view(is_closing=True, hung=31.0), view()], 1, {}, Decision(evict=(0,))),
        ([GroupView(RunStatus(is_busy=True, hung=31.0), is_evictable=False)], 1, {}, Decision()),
        ([view(placed=False, is_closing=True), view()], 1, {}, Decision(evict=(0,))),
    ],
)
def test_what_the_pool_decides(groups: list[GroupView], wanted: int, more: dict[str, Any], expected: Decision) -> None:
    assert plan(groups, wanted, **more) == expected


class HealthCheckFailedError(Exception):
    """As Ray Train wraps the death of a worker."""

    def __init__(self, failure: Exception) -> None:
        super().__init__("A worker health check failed.")
        self.health_check_failure = failure


def test_a_death_is_reported_rather_than_what_its_peers_raise() -> None:
    reported: list[tuple[Any, ...]] = []
    losses = Losses(SimpleNamespace(lost=SimpleNamespace(remote=lambda *what: reported.append(what))), 7)
    died, gone = RayActorError(), ActorUnavailableError("node-2 is out of reach", b"0" * 16)
    losses.after_exception(None, {0: RuntimeError("gloo: connection closed"), 1: HealthCheckFailedError(died)})
    losses.after_exception(None, {0: HealthCheckFailedError(gone)})
    losses.after_exception(None, {1: ValueError("a shape")})
    assert [(run, kind) for run, kind, _ in reported] == [(7, WORKER), (7, NODE), (7, WORKER)]
    assert reported[0][2].startswith("RayActorError: The actor")
    assert "out of reach" in reported[1][2]
    assert reported[2][2] == "ValueError: a shape"


class Client:
    """Submits trials to a pool and reads their news, as a trial's process does."""

    def __init__(self, pool: GroupPool) -> None:
        self.pool = pool

    def train(
        self, number: int, experiment: Experiment, on_report: Callable[[dict[str, Any]], None] | None = None
    ) -> tuple[list[dict[str, Any]], str]:
        """Returns a trial's reports and how it ended."""
        from cdn_tune.distributed.ray import ray

        work = {"experiment": experiment.plain(), "folder": str(number)}
        ticket = ray.get(self.pool.handle.submit.remote(number, work), timeout=60)
        reports: list[dict[str, Any]] = []
        while True:
            for kind, content in ray.get(self.pool.handle.next.remote(ticket, 5.0), timeout=60):
                if kind != REPORT:
                    return reports, kind
                reports.append(content)
                if on_report is not None:
                    on_report(content)

    def stop_after(self, number: int, experiment: Experiment, epoch: int) -> None:
        """Gives a trial up after an epoch."""

        def stop(report: dict[str, Any]) -> None:
            if report["epoch"] == epoch:
                self.pool.stop(number)
                raise StopIteration

        with contextlib.suppress(StopIteration):
            self.train(number, experiment, stop)


@pytest.fixture
def client(ray_session: None, tmp_path: Path) -> Iterator[Client]:
    pool = GroupPool(ResourcesConfig(workers=2), tmp_path)
    try:
        yield Client(pool)
    finally:
        assert pool.close()
        assert left_behind() == ([], 0)
        assert not (tmp_path / ".ray").exists()


def lasting(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reports without what depends on the clock and on the process."""
    vary = ("samples_per_second", "train_seconds", "val_seconds", "peak_bytes")
    return [{key: value for key, value in report.items() if key not in vary} for report in reports]


@pytest.mark.slow
def test_a_kept_group_trains_as_a_new_one(client: Client, tiny: Tiny, tmp_path: Path) -> None:
    """After other trials, one that was stopped early and one that failed; until a worker is killed."""
    first = tiny(**{"train.epochs": 3})
    expected, how = client.train(0, first)
    assert ([report["epoch"] for report in expected], how) == ([1, 2, 3], FINISHED)
    workers = train_workers()
    assert len(workers) == 2

    client.stop_after(1, tiny(**{"train.epochs": 500, "model.map.layers": 1, "seed": 5, "train.batch_size": 4}), 2)
    broken = tiny(**{"optim.lr": 1e30, "optim.name": "adamw", "optim.weight_decay": 1e9})
    assert client.train(2, broken)[1] == FAILED
    again, how = client.train(3, first)
    assert how == FINISHED
    assert lasting(again) == lasting(expected)
    assert train_workers() == workers

    def kill(report: dict[str, Any]) -> None:
        if report["epoch"] == 1:
            os.kill(workers[0], signal.SIGKILL)

    assert client.train(4, tiny(**{"train.epochs": 500}), kill)[1] == LOST
    again, how = client.train(5, first)
    assert how == FINISHED
    assert lasting(again) == lasting(expected)
    assert len({*workers, *train_workers()}) == 4


@pytest.mark.slow
def test_twenty_in_a_row_leave_nothing(client: Client, tiny: Tiny) -> None:
    """Half of them stopped early; by the same two processes."""
    client.train(0, tiny(**{"train.epochs": 1}))
    workers = train_workers()
    for number in range(1, 20):
        if number % 2:
            client.stop_after(number, tiny(**{"train.epochs": 500}), 1)
        else:
            reports, how = client.train(number, tiny(**{"train.epochs": 2}))
            assert ([report["epoch"] for report in reports], how) == ([1, 2], FINISHED)
    assert train_workers() == workers


@pytest.mark.slow
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
    broken = tiny(**{"optim.lr": 1e30, "optim.name": "adamw", "optim.weight_decay": 1e9})
    with pytest.raises(NotFinite, match=r"learning rate 1e\+30"):
        train_on_workers(broken, tmp_path / "broken", 2, two.append)
    assert left_behind() == ([], 0)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_pool_closes_while_it_starts_or_waits_for_a_place(tmp_path: Path) -> None:
    from ray.util.placement_group import placement_group

    from cdn_tune.distributed.ray import ray, remove_placement_group

    GroupPool(ResourcesConfig(workers=2), tmp_path).close()
    assert left_behind() == ([], 0)
    held = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    try:
        assert held.wait(60)
        pool = GroupPool(ResourcesConfig(workers=2), tmp_path)
        wait_for(lambda: len(pool._places()) == 1, 60)
        assert pool.ready == 0
        assert pool.close()
        assert left_behind(1) == ([], 1)
    finally:
        remove_placement_group(held)


def test_an_error_in_the_data_is_the_nodes_if_they_have_gone() -> None:
    """Workers outlive trials, so what they have checked once may be so no more."""
    unfit = NodeUnfit("f" * 56, "node-2: no features")

    def check(*, again: bool = False) -> None:
        if again:
            raise unfit

    assert _unfit(check, again=True) is unfit
    assert _unfit(check) is None
    assert _unfit(None, again=True) is None


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
