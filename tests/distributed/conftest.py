"""A cluster of one node with a job server, for tests of joining it; each command talks to it from its own process."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 90.0

Run = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Head:
    """A head node: where it is, and how commands reach it; without a token if it asks for none."""

    address: str
    jobs: str
    token: str | None
    logs: Path

    def environment(self, token: str | None) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        home = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(self.logs.parent)}
        return kept | home | ({} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token})

    def call(self, *arguments: str | Path, token: str | None = "", cwd: Path | None = None) -> Run:
        """Runs cdn-tune with the head's token, another one, or none (None)."""
        return subprocess.run(
            [sys.executable, "-m", "cdn_tune", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=150,
            cwd=cwd,
            env=self.environment(self.token if token == "" else token),
        )

    def script(self, code: str) -> Run:
        """Runs Python with the head's token."""
        return subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=100,
            env=self.environment(self.token),
        )


@pytest.fixture(scope="session")
def head(ray_start: None) -> Iterator[Head]:
    """A head node with its own token."""
    with running_head(secrets.token_hex(16)) as found:
        yield found


@contextlib.contextmanager
def running_head(token: str | None) -> Iterator[Head]:
    """A head node of two CPUs on the loopback interface, with a job server."""
    folder = Path(tempfile.mkdtemp(prefix="cdt", dir="/tmp"))  # Ray's sockets need a short path
    ports = free_ports(5)
    host = "127.0.0.1"
    found = Head(f"{host}:{ports[0]}", f"http://{host}:{ports[1]}", token, folder / "r/session_latest/logs")
    where = {
        "port": ports[0],
        "dashboard-port": ports[1],
        "dashboard-agent-listen-port": ports[2],
        "ray-client-server-port": ports[3],
        "metrics-export-port": ports[4],
        "dashboard-host": host,
        "include-dashboard": "true",
        "num-cpus": 2,
        "object-store-memory": 100_000_000,
        "temp-dir": folder / "r",
    }
    environment = found.environment(found.token) | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the loopback interface alone
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "90",  # 30 s by itself, and then it gives up
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with (folder / "start.log").open("w") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", "--head", "--block"]
            + [f"--{name}={value}" for name, value in where.items()],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
        )
    try:
        wait_for(lambda: answers(found), lambda: (folder / "start.log").read_text())
        yield found
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def answers(head: Head) -> bool:
    host, port = head.jobs.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    try:
        connection.request("GET", "/api/jobs/", headers={"Authorization": f"Bearer {head.token}"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_for(is_true: Callable[[], bool], told: Callable[[], str], seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, told()
        time.sleep(0.3)


def family_of(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all it has started."""
    family = family_of(process.pid)
    process.terminate()
    try:
        process.wait(timeout=20)
    finally:
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
