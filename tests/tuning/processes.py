"""Searches as processes of their own, killed at chosen moments; what tests of resuming share."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.config.yaml import dump
from cdn_tune.errors import CdnTuneError
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.study.ranking import own

PARAMETERS: dict[str, Any] = {
    "optim.lr": {"type": "float", "low": 1e-3, "high": 1e-2, "log": True},
    "model.proposals": {"type": "categorical", "choices": ["pool", "conv"]},
}


def write_space(folder: Path, experiment: Experiment, **more: Any) -> Path:
    """Writes an experiment and a search space over it; returns the space's file."""
    (folder / "experiment.yaml").write_text(dump(experiment.plain()))
    space = {"name": "tiny", "experiment": "experiment.yaml", "parameters": PARAMETERS, "trials": 4, "keep": 2, **more}
    SearchSpace.model_validate(space, strict=False)
    (folder / "space.yaml").write_text(dump(space))
    return folder / "space.yaml"


def command(space: Path, run: Path, *more: str) -> list[str]:
    """Returns the command line of a search."""
    return [sys.executable, "-m", "cdn_tune", "search", str(space), "--run", str(run), *more]


class Driver:
    """A search under way.

    Args:
        arguments: Its command line.
        log: File for what it prints.
    """

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        with log.open("a") as file:
            self.process = subprocess.Popen(arguments, stdout=file, stderr=file, start_new_session=True)

    def wait_until(self, condition: Callable[[], object], seconds: float = 240) -> bool:
        """Waits for a condition; returns whether it came true before the search ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.05)
        raise AssertionError(f"waited {seconds} s in vain: {self.log.read_text()}")

    def kill(self, everything: bool = False) -> None:
        """Kills the driver, or every process it has started as well, and waits until none is left."""
        family = descendants(self.process.pid)
        for pid in [self.process.pid, *(family if everything else [])]:
            end(pid)
        self.process.wait()
        deadline = time.monotonic() + 60
        while any(is_alive(pid) for pid in family) and time.monotonic() < deadline:
            for pid in family:  # one may get its name only now
                if any(name in title(pid) for name in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")):
                    end(pid)  # Ray's own: they wait a minute for the head of the cluster, which is dead
            time.sleep(0.1)
        left = {pid: title(pid) for pid in family if is_alive(pid)}
        for pid in left:
            end(pid)
        assert not left, f"processes outlived their driver: {left}"

    def workers(self) -> list[int]:
        """Returns the processes in which trials run."""
        names = ("ImplicitFunc", "ResourceTrainable")
        return [pid for pid in descendants(self.process.pid) if any(name in title(pid) for name in names)]


def end(pid: int) -> None:
    """Kills one process, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Returns a process's children, their children, and so on."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs, and is no zombie."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def title(pid: int) -> str:
    """Returns a process's command line."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def recorded(run: Path) -> list[FrozenTrial]:
    """Returns the run's trials as recorded now; none before the study exists. The record is not touched."""
    try:
        return own(read_record(run).entries)
    except CdnTuneError:  # not created yet
        return []


def finish(arguments: list[str], seconds: float = 280) -> str:
    """Runs a search to its end; returns what it printed."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
