"""A real MLflow server for tests, in a process of its own, behind a proxy of faults."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault_proxy import FaultProxy

SECONDS = 240  # until it answers: it imports for long
_MODULES = ("mlflow", "flask", "graphene", "mlflow.server")


class Server:
    """MLflow on loopback, with a database and artefacts in a folder.

    Args:
        folder: Of both.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        folder = self._folder
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
        command += ["--artifacts-destination", str(folder / "artefacts")]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=log, start_new_session=True,
                env={**kept, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )  # fmt: skip
        until = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                if time.monotonic() > until or self._process.poll() is not None:
                    pytest.fail((folder / "log").read_text()[-2000:])
                time.sleep(0.2)

    def stop(self) -> None:
        """Ends it and its workers at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Mlflow:
    """A running server.

    Attributes:
        server: It.
        proxy: Before it.
    """

    def __init__(self, server: Server, proxy: FaultProxy) -> None:
        self.server, self.proxy = server, proxy

    @property
    def uri(self) -> str:
        """Where it is reached, through the proxy."""
        return f"http://{self.proxy.endpoint}"

    def client(self) -> Any:
        """Returns a client that goes past the proxy."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=f"http://127.0.0.1:{self.server.port}")

    def runs(self, experiment: str = "cdn-tune") -> dict[str, Any]:
        """Returns an experiment's runs by name."""
        client = self.client()
        found = client.get_experiment_by_name(experiment)
        runs = [] if found is None else client.search_runs([found.experiment_id], max_results=1000)
        named = {run.info.run_name: run for run in runs}
        assert len(named) == len(runs), "two runs have one name"
        return named


@pytest.fixture
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    """A running MLflow server; skipped where only its client is installed."""
    if not all(importlib.util.find_spec(name) for name in _MODULES):
        pytest.skip("MLflow's server is not installed")
    folder = tmp_path_factory.mktemp("mlflow")
    server = Server(folder)
    try:
        server.start()
        with FaultProxy(server.port) as proxy:
            yield Mlflow(server, proxy)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
