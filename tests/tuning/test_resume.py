"""A search that is killed, whoever and whenever, ends with every trial counted once."""

import logging
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config import Experiment
from cdn_tune.training.runs.checkpoint import load_checkpoint
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.tuning.layout import trial_folder

from .processes import Driver, command, descendants, end, finish, is_alive, recorded, title, write_space

Tiny = Callable[..., Experiment]
EPOCHS = 6
LOG = logging.getLogger(__name__)


def states(run: Path) -> list[TrialState]:
    return [trial.state for trial in recorded(run)]


def has_ended(run: Path, count: int) -> bool:
    return sum(state.is_finished() for state in states(run)) >= count


def in_epoch(run: Path, epochs: int) -> bool:
    """Whether a running trial has reported so many epochs."""
    return any(
        trial.state == TrialState.RUNNING and len(trial.intermediate_values) >= epochs for trial in recorded(run)
    )


def has_gone_on(run: Path, known: dict[int, int]) -> bool:
    """Whether a running trial has reported epochs beyond those known."""
    running = [trial for trial in recorded(run) if trial.state == TrialState.RUNNING]
    return any(len(trial.intermediate_values) > known.get(trial.number, 0) + 1 for trial in running)


def check_accounts(run: Path, trials: int, before: dict[int, dict[str, Any]]) -> None:
    """Every trial is on record once, with the parameters it was first given, and with every epoch once."""
    record: list[FrozenTrial] = recorded(run)
    assert len(record) == trials
    for trial in record:
        assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED), trial.user_attrs
        epochs = [entry["epoch"] for entry in read_metrics(trial_folder(run, trial.number))]
        assert epochs[: len(trial.intermediate_values)] == sorted(trial.intermediate_values)
        if trial.state == TrialState.COMPLETE:
            assert epochs == list(range(1, EPOCHS + 1))
        assert trial.params == before.get(trial.number, trial.params)
    points = [str(sorted(trial.params.items())) for trial in record]
    assert len(set(points)) == trials
    best = max(record, key=lambda trial: (trial.value or 0.0, -trial.number))
    kept = load_checkpoint(run / "best" / f"trial-{best.number:04d}" / "checkpoint.pt")
    assert kept.value == pytest.approx(best.value)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_seven_moments(tiny: Tiny, tmp_path: Path) -> None:
    """One search: its driver, its workers, or all of it is killed again and again; the same command goes on."""
    run = tmp_path / "run"
    experiment = tiny(**{"train.epochs": EPOCHS, "train.checkpoint": 1e-9})
    space = write_space(tmp_path, experiment, trials=6, early_stopping={"name": "asha", "min_resource": 2})
    arguments = command(space, run)
    moments: list[tuple[str, Callable[[], object], bool]] = [
        ("as soon as the run folder is there", lambda: (run / "manifest.json").exists(), False),
        ("when the first trial is on record", lambda: recorded(run), True),
        ("in the first epochs", lambda: in_epoch(run, 1), False),
        ("when a trial has ended", lambda: has_ended(run, 1), True),
        ("in a later trial", lambda: has_ended(run, 2) and in_epoch(run, 2), False),
    ]
    before: dict[int, dict[str, Any]] = {}
    finished: dict[int, Any] = {}
    for _, moment, everything in moments:
        driver = Driver(arguments, tmp_path / "log")
        try:
            driver.wait_until(moment)
        finally:
            driver.kill(everything)
        before |= {trial.number: trial.params for trial in recorded(run) if trial.state != TrialState.WAITING}
        now = {trial.number: (trial.state, trial.value) for trial in recorded(run) if trial.state.is_finished()}
        assert {number: now[number] for number in finished} == finished  # what is finished stays as it is
        finished = now
    driver = Driver([*arguments, "--resume"], tmp_path / "log")
    try:  # two workers die under a driver that lives on
        for _ in range(2):
            driver.wait_until(lambda: in_epoch(run, 1) and driver.workers())
            for pid in driver.workers()[:1]:
                end(pid)
            time.sleep(0.5)
        driver.process.wait(timeout=200)
    finally:
        driver.kill(everything=True)
    assert driver.process.returncode == 0, driver.log.read_text()
    check_accounts(run, 6, before)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stop_and_ctrl_c_leave_checkpoints_and_no_process(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    experiment = tiny(**{"train.epochs": 2000})
    space = write_space(tmp_path, experiment, trials=2, early_stopping={"name": "none"})
    arguments = command(space, run)
    stop = [*arguments[:3], "search", "stop", str(run)]
    for request in ("stop", "SIGINT", "SIGTERM"):
        driver = Driver(arguments, tmp_path / request)
        try:
            known = {trial.number: len(trial.intermediate_values) for trial in recorded(run)}
            driver.wait_until(partial(has_gone_on, run, known))
            family = descendants(driver.process.pid)
            status = finish([*arguments[:3], "search", "status", str(run)])
            assert "running" in status
            if request == "stop":
                assert "stopped" in finish(stop)
            else:
                os.kill(driver.process.pid, getattr(signal, request))
            driver.process.wait(timeout=60)
        finally:
            driver.kill(everything=True)
        text = driver.log.read_text()
        assert driver.process.returncode == (0 if request == "stop" else 130), text
        assert "same command goes on" in text
        assert TrialState.FAIL not in states(run)
        assert not any(is_alive(pid) for pid in family)
    assert "no search is running" in finish(stop)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_five_times_at_random(tiny: Tiny, tmp_path: Path, seed: int) -> None:
    """Twenty-five kills in all: of the driver, of a worker, of everything."""
    generator = random.Random(seed)
    run = tmp_path / "run"
    experiment = tiny(**{"train.epochs": EPOCHS, "train.checkpoint": 1e-9, "seed": seed})
    space = write_space(
        tmp_path, experiment, trials=8, early_stopping={"name": "asha", "min_resource": 2}, max_failures=9
    )
    before: dict[int, dict[str, Any]] = {}
    kills = 0
    while kills < 5:
        driver = Driver(command(space, run), tmp_path / "log")
        whom = generator.choice(("driver", "worker", "everything"))
        try:
            driver.wait_until(lambda: (run / "manifest.json").exists())
            time.sleep(generator.uniform(0, 12))
            if whom == "worker" and driver.workers():
                end(generator.choice(driver.workers()))
                kills += 1
                time.sleep(generator.uniform(0, 5))
        finally:
            ended = driver.process.poll() is not None
            driver.kill(everything=whom == "everything")
            kills += not ended
        before |= {trial.number: trial.params for trial in recorded(run) if trial.state != TrialState.WAITING}
        if ended:
            break
    finish(command(space, run))
    check_accounts(run, 8, before)


def test_asked_to_resume_what_is_not_there(tiny: Tiny, tmp_path: Path) -> None:
    space = write_space(tmp_path, tiny(), trials=1)
    arguments = command(space, tmp_path / "run", "--resume")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "holds no search" in done.stderr


PROCESSES = {  # of a search whose trials have two workers, as Ray names them
    "a worker": ("ray::RayTrainWorker",),
    "the controller": ("ray::TrainController",),
    "the relay": ("ray::GroupTrial", "ray::ResourceTrainable"),
    "the coordinator": ("ray::Coordinator",),
    "the driver": (),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_a_killed_process_of_a_group_costs_nothing(tiny: Tiny, tmp_path: Path, name: str) -> None:
    """Trials go on by themselves, or with the same command; all are complete, and no process is left."""
    space = write_space(
        tmp_path, tiny(**{"train.epochs": 40}), trials=2, resources={"workers": 2}, early_stopping={"name": "none"}
    )
    run = tmp_path / "run"
    arguments = command(space, run)
    driver = Driver(arguments, tmp_path / "log")
    try:
        assert driver.wait_until(lambda: any(trial.intermediate_values for trial in recorded(run)))
        family = [driver.process.pid, *descendants(driver.process.pid)]
        if name == "the driver":
            driver.kill()
        else:
            (pid, *_) = [pid for pid in family if any(each in title(pid) for each in PROCESSES[name])]
            killed, at = time.monotonic(), len(recorded(run)[0].intermediate_values)
            end(pid)
            if driver.wait_until(lambda: len(recorded(run)[0].intermediate_values) > at + 1):
                LOG.info("%s: it goes on after %.1f s", name, time.monotonic() - killed)
            driver.process.wait(240)
    finally:
        driver.kill(everything=True)
    text = driver.log.read_text()
    assert "Traceback" not in text
    if driver.process.returncode:
        assert name in ("the driver", "the coordinator"), text
        finish(arguments)
    assert [trial.state.name for trial in recorded(run)] == ["COMPLETE"] * 2
    assert all(sorted(trial.intermediate_values) == list(range(1, 41)) for trial in recorded(run))
    assert not [pid for pid in family if is_alive(pid) and "ray::" in title(pid)]
