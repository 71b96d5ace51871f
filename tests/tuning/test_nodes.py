"""A search over real raylets whose nodes come, go, lack the data, are slow, out of reach, or have a wrong clock."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config import Experiment
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.tuning.layout import trial_folder
from cdn_tune.tuning.results.record import read_record

from .clusters import autoscaling_cluster, partitioned_cluster, ray_cluster, wait_for
from .processes import Driver, command, recorded, write_space

Tiny = Callable[..., Experiment]
EPOCHS = 60
pytestmark = pytest.mark.timeout(1200)  # of several nodes on a machine that does other things


@pytest.fixture
def start(tiny: Tiny, tmp_path: Path, ray_start: None) -> Iterator[Callable[..., Driver]]:
    """Starts searches over a cluster; ends what is left of them."""
    drivers: list[Driver] = []

    def make(
        cluster: Any,
        *more: str,
        epochs: int = EPOCHS,
        **space: Any,
    ) -> Driver:
        experiment = tiny(**{"train.epochs": epochs, "train.checkpoint": 1e-9})
        file = write_space(tmp_path, experiment, **{"early_stopping": {"name": "none"}, "max_failures": 0, **space})
        arguments = [*command(file, tmp_path / "run"), "--address", cluster.address, *more]
        driver = Driver(arguments, tmp_path / "log")
        drivers.append(driver)
        return driver

    yield make
    for driver in drivers:
        driver.kill()


def under_way(run: Path, epochs: int = 1) -> int:
    """Returns how many running trials have reported so many epochs."""
    return sum(
        trial.state == TrialState.RUNNING and len(trial.intermediate_values) >= epochs for trial in recorded(run)
    )


def check_accounts(run: Path, trials: int, epochs: int = EPOCHS) -> list[FrozenTrial]:
    """Every trial is on record once, complete, with every epoch trained once."""
    record = recorded(run)
    assert [trial.number for trial in record] == list(range(trials))
    assert len({str(sorted(trial.params.items())) for trial in record}) == trials
    for trial in record:
        assert trial.state == TrialState.COMPLETE, trial.user_attrs
        assert sorted(trial.intermediate_values) == list(range(1, epochs + 1))
        told = [entry["epoch"] for entry in read_metrics(trial_folder(run, trial.number))]
        assert told == list(range(1, epochs + 1))
    return record


def ends_well(driver: Driver, seconds: float = 600) -> str:
    driver.process.wait(timeout=seconds)
    text = driver.log.read_text()
    assert driver.process.returncode == 0, text
    assert "left behind" not in text
    return text


@pytest.mark.slow
def test_a_node_dies_and_another_comes(start: Any, tmp_path: Path) -> None:
    """The trial of the dead node goes on elsewhere from its checkpoint, free of charge; the new node is used."""
    run = tmp_path / "run"
    with ray_cluster(tmp_path, head=1, first=1) as cluster:
        driver = start(cluster, trials=3)
        assert driver.wait_until(lambda: under_way(run, 2) == 2)
        assert cluster.workers("first")
        cluster.kill("first")
        cluster.add("second", 1)
        assert driver.wait_until(lambda: cluster.workers("second"))
        ends_well(driver)
    record = check_accounts(run, 3)
    assert sum(len([*trial_folder(run, trial.number).rglob("*tfevents*")]) for trial in record) >= 4  # one per start


@pytest.mark.slow
def test_a_node_without_the_data_takes_no_trials(start: Any, planted: Path, tmp_path: Path) -> None:
    """It says so; each other node builds a clip cache of its own; the search goes on."""
    run, cache = tmp_path / "run", tmp_path / "cache"
    with ray_cluster(tmp_path, head=1) as cluster:
        cluster.add("full", 1, {"CDN_TUNE_CACHE": str(cache)})
        cluster.add_without("empty", planted)
        driver = start(cluster, trials=4, epochs=20)
        seen: set[str] = set()

        def look() -> bool:
            seen.update(name for name in cluster.raylets if cluster.workers(name))
            return driver.process.poll() is not None

        wait_for(look, 400)
        text = ends_well(driver)
    assert f"takes no trials: {planted}" in text
    assert seen == {"head", "full"}
    check_accounts(run, 4, 20)
    assert [*(cache / "clips").glob("*/part-*")]
    assert read_record(run).attributes["unfit_nodes"]


@pytest.mark.slow
def test_no_node_has_the_data(start: Any, planted: Path, tmp_path: Path) -> None:
    """Then the search stops, and says why; its trials are not lost."""
    with ray_cluster(tmp_path, head=0) as cluster:
        cluster.add_without("worker", planted)
        driver = start(cluster, trials=2)
        driver.process.wait(timeout=100)
    assert driver.process.returncode == 2, driver.log.read_text()
    assert "no node of the cluster has the data" in driver.log.read_text()
    assert TrialState.FAIL not in {trial.state for trial in recorded(tmp_path / "run")}


@pytest.mark.slow
def test_half_of_the_nodes_go(start: Any, tmp_path: Path) -> None:
    """The search shrinks and goes on: to a stop asked for while trials have no place, too."""
    run = tmp_path / "run"
    with ray_cluster(tmp_path, head=1, one=1, two=1, three=1) as cluster:
        driver = start(cluster, trials=8)
        assert driver.wait_until(lambda: under_way(run, 1) == 4)
        cluster.remove("two")
        cluster.kill("three")
        ends_well(driver)
    check_accounts(run, 8)


@pytest.mark.slow
def test_all_nodes_go_and_the_search_can_be_stopped(start: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with ray_cluster(tmp_path, head=0, one=1) as cluster:
        driver = start(cluster, trials=2, epochs=2000)
        assert driver.wait_until(lambda: under_way(run))
        cluster.kill("one")
        time.sleep(40)  # until Ray has given the node up
        assert driver.process.poll() is None
        os.kill(driver.process.pid, signal.SIGINT)
        driver.process.wait(timeout=60)
    assert driver.process.returncode == 130, driver.log.read_text()
    assert {trial.state for trial in recorded(run)} == {TrialState.RUNNING}


@pytest.mark.slow
def test_the_head_dies(start: Any, tmp_path: Path) -> None:
    """The driver ends in bounded time, and the same command goes on, on another cluster."""
    run = tmp_path / "run"
    with ray_cluster(tmp_path, head=1, one=1) as cluster:
        driver = start(cluster, trials=3)
        assert driver.wait_until(lambda: under_way(run, 2) == 2)
        before = {trial.number: trial.params for trial in recorded(run)}
        cluster.kill_head()
        driver.process.wait(timeout=200)
        assert driver.process.returncode != 0
    with ray_cluster(tmp_path, head=1, one=1) as cluster:
        ends_well(start(cluster, "--resume", trials=3))
    record = check_accounts(run, 3)
    assert before.items() <= {trial.number: trial.params for trial in record}.items()


@pytest.mark.slow
def test_a_slow_node_holds_up_nobody(start: Any, tmp_path: Path) -> None:
    """A node whose processes hardly get on: the others take trials as if it were not there."""
    run = tmp_path / "run"
    over = threading.Event()
    with ray_cluster(tmp_path, head=1, snail=1) as cluster:

        def slow_down() -> None:
            while not over.wait(0.5):
                for pid in cluster.workers("snail"):
                    with_signal(pid, signal.SIGSTOP)
                over.wait(4.5)
                for pid in cluster.workers("snail"):
                    with_signal(pid, signal.SIGCONT)

        thread = threading.Thread(target=slow_down)
        thread.start()
        try:
            driver = start(cluster, trials=5, epochs=10)
            ends_well(driver)
        finally:
            over.set()
            thread.join()
    check_accounts(run, 5, 10)


def with_signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [10, 90], ids=["unnoticed", "given up"])
def test_a_partition_heals(start: Any, tmp_path: Path, seconds: int) -> None:
    """A node out of reach for a while: its trial is counted once, whoever finishes it."""
    run = tmp_path / "run"
    with partitioned_cluster(tmp_path) as cluster:
        driver = start(cluster, trials=3, epochs=200, max_failures=3)
        assert driver.wait_until(lambda: under_way(run, 2) == 2)
        cluster.cut("far")
        time.sleep(seconds)
        cluster.heal("far")
        ends_well(driver)
    check_accounts(run, 3, 200)


@pytest.mark.slow
def test_an_autoscaler_grows_and_shrinks_the_cluster(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # as the cluster's
    run = tmp_path / "run"
    with autoscaling_cluster(tmp_path, workers=3) as cluster:
        driver = start(cluster, trials=8, epochs=120)
        assert driver.wait_until(lambda: under_way(run) >= 3, 400)
        ends_well(driver)
        wait_for(lambda: len(cluster.alive()) == 1, 120)
    check_accounts(run, 8, 120)
