"""The start of a search as a process: errors, and Ctrl-C at any moment, leave no process and no half-written run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cdn_tune.config import Experiment

from .processes import Driver, command, descendants, is_alive, title, write_space

Tiny = Callable[..., Experiment]
# What is under way when Ctrl-C comes: the process, begun before the driver's imports, during them, and after them.
MOMENTS = ("gcs_server", "dashboard.py", "raylet", "ray::", "manifest.json", "0000")


def ends_alone(driver: Driver, family: set[int]) -> None:
    """Waits for a search to end; asserts that nothing of what it has started is left then."""
    while driver.process.poll() is None:
        family.update(descendants(driver.process.pid))
        time.sleep(0.02)
    deadline = time.monotonic() + 30  # Ray's workers and agents end when its node has
    while any(map(is_alive, family)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not {pid: title(pid) for pid in family if is_alive(pid)}


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_during_the_start_leaves_nothing(tiny: Tiny, tmp_path: Path, moment: str, times: int) -> None:
    run = tmp_path / "run"
    arguments = command(write_space(tmp_path, tiny(**{"train.epochs": 500}), trials=2), run)
    driver = Driver(arguments, tmp_path / "log")
    family: set[int] = set()

    def has_come() -> bool:
        family.update(descendants(driver.process.pid))
        if (run / moment).exists() or (run / "trials" / moment).exists():
            return True
        return any(moment in title(pid) for pid in family)

    try:
        assert driver.wait_until(has_come)
        for _ in range(times):
            os.kill(driver.process.pid, signal.SIGINT)
            time.sleep(0.05)
        ends_alone(driver, family)
    finally:
        driver.kill(everything=True)
    text = driver.log.read_text()
    assert driver.process.returncode == 130, text
    assert "interrupted" in text
    assert "Traceback" not in text
    if times == 1:
        assert "same command goes on" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["data.root=/nowhere"], "/nowhere"),
        (["--resume"], "holds no search"),
        (["--set", "resources.cpus_per_worker=4096"], "a trial needs 1 x 4096 CPUs"),
    ],
)
def test_errors_before_a_start_leave_nothing(tiny: Tiny, tmp_path: Path, more: list[str], told: str) -> None:
    run = tmp_path / "run"
    driver = Driver(command(write_space(tmp_path, tiny()), run, *more), tmp_path / "log")
    try:
        ends_alone(driver, set())
    finally:
        driver.kill(everything=True)
    lines = driver.log.read_text().splitlines()
    assert driver.process.returncode == 2, lines
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert told in lines[-1]
    assert not (run / "trials").exists()
