"""Whole searches on Ray: one-worker trials in reused actors, groups of workers, failures, kill -9."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.config.yaml import dump
from cdn_tune.distributed.ray import ray
from cdn_tune.errors import ClusterError, RunError, SearchError
from cdn_tune.evaluation.choose_checkpoint import choose_best
from cdn_tune.training.runs.checkpoint import load_checkpoint
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.tuning.layout import trial_folder
from cdn_tune.tuning.progress import SearchState
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.search import SearchOptions, search

from .processes import descendants, title

Tiny = Callable[..., Experiment]
pytestmark = pytest.mark.usefixtures("ray_session")


def make_space(**more: Any) -> SearchSpace:
    return SearchSpace.model_validate(
        {
            "name": "tiny",
            "experiment": "tiny",
            "parameters": {
                "optim.lr": {"type": "float", "low": 1e-3, "high": 1e-2, "log": True},
                "model.proposals": {"type": "categorical", "choices": ["pool", "conv"]},
            },
            "trials": 4,
            "keep": 2,
            **more,
        }
    )


def ignore(_: SearchState) -> None:
    pass


def assert_nothing_left() -> None:
    """No placement group is alive, and every CPU is free again."""
    from cdn_tune.distributed.ray import placement_group_table

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        alive = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
        if not alive and ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return
        time.sleep(0.2)
    pytest.fail(f"left behind: {alive}, {ray.available_resources()}")


@pytest.mark.compat("a search, its early stopping and what it keeps")
def test_search_end_to_end(tiny: Tiny, tmp_path: Path) -> None:
    states: list[SearchState] = []
    run = tmp_path / "a run"  # with a space
    experiment = tiny(**{"train.epochs": 3})
    result = search(make_space(), experiment, run, states.append)
    assert not result.interrupted
    assert len(result.rows) == 4
    assert {row["state"] for row in result.rows} <= {"complete", "pruned"}
    values = [row["value"] for row in result.rows]
    assert values == sorted(values, reverse=True)
    assert len(result.kept) == 2
    for path, row in zip(result.kept, result.rows, strict=False):
        checkpoint = load_checkpoint(path)
        assert (
            round(checkpoint.value, 4)
            == row["value"]
            == round(max(e["value"] for e in read_metrics(trial_folder(run, row["trial"]))), 4)
        )
        assert checkpoint.experiment.optim.lr == row["optim.lr"]
        assert checkpoint.experiment.model.proposals == row["model.proposals"]
    with (run / "leaderboard.csv").open() as file:
        assert [int(row["trial"]) for row in csv.DictReader(file)] == [row["trial"] for row in result.rows]
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["kind"] == "search"
    assert manifest["data"]["planted"] is True
    assert states[-1].finished
    assert_nothing_left()

    again = search(make_space(), experiment, run, ignore)
    assert again.was_finished
    assert again.rows == result.rows
    more = search(make_space(), experiment, run, ignore, SearchOptions(trials=5))
    assert len(more.rows) == 5
    assert {row["trial"] for row in more.rows} == {0, 1, 2, 3, 4}
    space = make_space(confirm={"top": 2, "seeds": 2}, keep=1)
    confirmed = search(space, experiment, run, ignore, SearchOptions(trials=9))
    runs = [row for row in confirmed.rows if row["confirms"] != ""]
    assert [(row["state"], row["epochs"], row["with_seed"]) for row in runs] == [
        ("complete", 3, seed) for seed in (1, 1, 2, 2)
    ]
    winner = confirmed.rows[0]
    assert winner["mean"] == max(row["mean"] for row in confirmed.rows[:2])
    of_it = [row for row in runs if row["confirms"] == winner["trial"]]
    assert winner["mean"] == pytest.approx(sum(row["value"] for row in of_it) / 2, abs=1e-4)
    model = choose_best(run)
    assert model.checkpoint.path == confirmed.kept[0]
    assert round(model.checkpoint.value, 4) == max(row["value"] for row in of_it)
    assert model.checkpoint.experiment.seed in (1, 2)
    assert model.checkpoint.experiment.optim.lr == winner["optim.lr"]
    assert model.confirmed == {**model.confirmed, "trial": winner["trial"], "seeds": [1, 2]}
    with pytest.raises(RunError, match="holds another run"):
        search(make_space(), tiny(seed=9), run, ignore)


@pytest.mark.slow
def test_failures_have_reasons_and_do_not_stop_the_search(tiny: Tiny, tmp_path: Path) -> None:
    # A learning rate of 1e30 drives the weights out of range at once; the other trials are sound.
    space = make_space(
        parameters={"optim.lr": {"type": "categorical", "choices": [1e-3, 1e30]}},
        start_with=[{"optim.lr": 1e30}, {"optim.lr": 1e-3}],
        trials=2,
    )
    experiment = tiny(**{"train.epochs": 1, "optim.name": "adamw", "optim.weight_decay": 1e9})
    sound = tiny(**{"train.epochs": 1})
    result = search(space, sound, tmp_path / "sound", ignore)
    assert "complete" in {row["state"] for row in result.rows}
    with pytest.raises(SearchError, match=r"all 1 trials failed: (loss|gradient norm) (nan|inf)"):
        search(space, experiment, tmp_path / "broken", ignore, SearchOptions(trials=1))
    trial = read_record(tmp_path / "broken").entries[0]
    assert trial.state.name == "FAIL"
    assert "learning rate 1e+30" in trial.user_attrs["reason"]
    assert_nothing_left()


@pytest.mark.compat("trials of two workers")
def test_groups_of_workers(tiny: Tiny, tmp_path: Path) -> None:
    """Trials of two workers, stopped early or not, are trained one after the other by the same processes."""
    relays, workers, over = set(), set(), threading.Event()

    def look() -> None:  # all the time: the search itself tells of its state now and then
        while not over.wait(0.05):
            for pid in descendants(os.getpid()):
                if "ResourceTrainable" in title(pid):
                    relays.add(pid)
                if "RayTrainWorker" in title(pid):
                    workers.add(pid)

    learning_rates = {"type": "categorical", "choices": [1e-2, 1e-7]}
    space = make_space(
        parameters={"optim.lr": learning_rates, "seed": {"type": "int", "low": 0, "high": 9}},
        start_with=[{"optim.lr": 1e-2, "seed": 0}, {"optim.lr": 1e-7, "seed": 0}, {"optim.lr": 1e-2, "seed": 1}],
        trials=3,
        resources={"workers": 2},
        early_stopping={"name": "asha", "min_resource": 1, "reduction_factor": 2},
    )
    run = tmp_path / "run"
    looking = threading.Thread(target=look)
    looking.start()
    try:
        result = search(space, tiny(**{"train.epochs": 4}), run, ignore)
    finally:
        over.set()
        looking.join()
    states = {row["trial"]: row["state"] for row in result.rows}
    assert states[0] == "complete"
    assert states[1] == "pruned"
    assert len(states) == 3
    assert len(relays) == 1
    assert len(workers) == 2
    assert not (run / ".ray").exists()
    assert load_checkpoint(result.kept[0]).val
    assert_nothing_left()


@pytest.mark.slow
def test_a_failure_in_a_group_is_told_with_its_reason(tiny: Tiny, tmp_path: Path) -> None:
    space = make_space(
        parameters={"optim.lr": {"type": "categorical", "choices": [1e30]}}, trials=1, resources={"workers": 2}
    )
    experiment = tiny(**{"train.epochs": 1, "optim.name": "adamw", "optim.weight_decay": 1e9})
    with pytest.raises(SearchError, match=r"learning rate 1e\+30"):
        search(space, experiment, tmp_path / "run", ignore)
    assert_nothing_left()


@pytest.mark.slow
def test_a_machine_at_fault_halts_the_search_and_costs_no_trial(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    experiment = tiny(**{"train.epochs": 1})
    (run / "trials").mkdir(parents=True)
    (run / ".lock").touch()
    (run / "trials" / "0000").touch()  # stands for a disk that takes nothing
    with pytest.raises(RunError, match=r"cannot be written .*the same command then goes on"):
        search(make_space(trials=2), experiment, run, ignore)
    (run / "trials" / "0000").unlink()
    result = search(make_space(trials=2), experiment, run, ignore)
    assert sorted(row["trial"] for row in result.rows) == [0, 1]
    assert {row["state"] for row in result.rows} <= {"complete", "pruned"}


def test_too_few_resources_are_told(tiny: Tiny, tmp_path: Path) -> None:
    space = make_space(resources={"workers": 1, "cpus_per_worker": 999})
    with pytest.raises(ClusterError, match="a trial needs 1 x 999 CPUs"):
        search(space, tiny(), tmp_path / "run", ignore)


@pytest.mark.slow
@pytest.mark.compat("a killed search goes on")
def test_kill_9_loses_nothing(tiny: Tiny, tmp_path: Path) -> None:
    """The driver is killed in mid-search; the same command goes on, every trial counted once."""
    run = tmp_path / "run"
    experiment = tiny(**{"train.epochs": 8})
    (tmp_path / "experiment.yaml").write_text(dump(experiment.plain()))
    space = make_space(experiment=str(tmp_path / "experiment.yaml"), trials=4, early_stopping={"name": "none"})
    (tmp_path / "space.yaml").write_text(dump(space.plain()))
    command = [sys.executable, "-m", "cdn_tune", "search", str(tmp_path / "space.yaml"), "--run", str(run)]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and not any(run.glob("trials/*/checkpoints/last.pt")):
                assert driver.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
        finally:
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
    before = {trial.number: trial for trial in read_record(run).entries}
    assert before
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    trials = read_record(run).entries
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    for trial in trials:
        assert trial.state.name == "COMPLETE"
        assert sorted(trial.intermediate_values) == list(range(1, 9))
        if trial.number in before:
            assert trial.params == before[trial.number].params
        assert [entry["epoch"] for entry in read_metrics(trial_folder(run, trial.number))] == list(range(1, 9))


def test_a_running_cluster_is_joined(tiny: Tiny, tmp_path: Path) -> None:

    (tmp_path / "experiment.yaml").write_text(dump(tiny(**{"train.epochs": 1}).plain()))
    space = make_space(experiment=str(tmp_path / "experiment.yaml"), trials=1)
    (tmp_path / "space.yaml").write_text(dump(space.plain()))
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "cdn_tune", "search", str(tmp_path / "space.yaml"), "--address", address]
    done = subprocess.run(
        [*command, "--run", str(tmp_path / "run")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ray.cluster_resources()["CPU"] >= 1  # left running
