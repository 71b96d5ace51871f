"""Jobs: submitted, followed, stopped and fetched from, against a head node's own job server."""

import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump
from cdn_tune.distributed import jobs as server
from cdn_tune.distributed.jobs import Jobs
from cdn_tune.errors import ClusterError
from tests.distributed.conftest import wait_for

Tiny = Callable[..., Experiment]


@pytest.fixture
def answering() -> Iterator[Callable[[int, str], str]]:
    """Makes HTTP servers that give every question one answer; returns their URL."""
    servers: list[http.server.HTTPServer] = []

    def make(status: int, body: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None: ...

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield make
    for each in servers:
        each.shutdown()
        each.server_close()


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (401, "Unauthorized", "none was sent|refuses this token"),
        (403, "Forbidden", "none was sent|refuses this token"),
        (200, "<html>hello</html>", "no job server answers there"),
        (500, "broken", "no job server answers there"),
        (404, "nothing", "refuses this"),
        (200, json.dumps({"version": "4", "ray_version": "1.0", "ray_commit": ""}), "Ray version 1.0"),
    ],
)
def test_what_is_no_job_server_is_told(answering: Callable[[int, str], str], status: int, body: str, told: str) -> None:
    with pytest.raises(ClusterError, match=told) as caught:
        Jobs(answering(status, body))
    assert "\n" not in str(caught.value)


def test_a_server_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ClusterError, match="no job server answers"):
        Jobs(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_the_address_that_is_given_counts(
    answering: Callable[[int, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = answering(200, json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": ""}))
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert Jobs(good).url == good
    with pytest.raises(ClusterError, match="the job server refuses this"):
        Jobs(good).all()  # the answer is no list of jobs
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1: no job server"):
        Jobs()


@pytest.fixture
def work(tiny: Tiny, tmp_path: Path) -> Path:
    """A working directory with a tiny experiment, and data that have to stay."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(dump(tiny(**{"train.epochs": 1}).plain()))
    (folder / "features.hdf5").write_bytes(b"0" * 1000)
    return folder


@pytest.mark.compat("a job trains, and its run is fetched")
def test_a_job_trains_and_its_run_comes_home(head, work: Path, tmp_path: Path) -> None:
    run, to = tmp_path / "shared" / "a run", tmp_path / "home"
    where = ("--address", head.jobs, "--python", sys.executable)
    result = head.call("cluster", "submit", *where, "--", "train", "tiny.yaml", "--run", run, cwd=work)
    assert result.returncode == 0, result.stderr + result.stdout
    assert "shipping 1 files" in result.stderr
    assert "best val R1@0.5" in result.stdout
    assert head.token not in (run / "manifest.json").read_text()
    fetched = head.call("cluster", "fetch", run, "--to", to, *where)
    assert fetched.returncode == 0, fetched.stderr
    assert f"best checkpoint: {to}/checkpoints/best.pt" in fetched.stdout
    assert (to / "checkpoints/best.pt").read_bytes() == (run / "checkpoints/best.pt").read_bytes()
    assert not (to / "checkpoints/last.pt").exists()
    assert [log for log in head.logs.glob("job-driver-*.log") if "@cdn-tune" in log.read_text()] == []


@pytest.mark.slow
def test_jobs_are_listed_with_how_they_ended(head, work: Path, tmp_path: Path) -> None:
    (work / "tiny.yaml").write_text((work / "tiny.yaml").read_text().replace("glove.planted.12d.txt", "none.txt"))
    arguments = ("--python", sys.executable, "--", "train", "tiny.yaml", "--run", tmp_path / "run")
    result = head.call("cluster", "submit", "--address", head.jobs, *arguments, cwd=work)
    assert result.returncode == 2, result.stderr
    assert "none.txt" in result.stdout
    latest = json.loads(head.call("cluster", "jobs", "--address", head.jobs, "--json").stdout)[0]
    assert (latest["state"], latest["exit_code"]) == ("FAILED", 2)
    assert latest["metadata"]["cdn_tune"].startswith("train tiny.yaml --run")
    missing = head.call("cluster", "logs", "raysubmit_nothing", "--address", head.jobs)
    assert missing.returncode == 2
    assert missing.stderr.strip() == "error: raysubmit_nothing: no such job; cdn-tune cluster jobs lists them"


@pytest.mark.slow
def test_a_stopped_search_saves_and_goes_on(head, tiny: Tiny, work: Path, tmp_path: Path) -> None:
    run = tmp_path / "search"
    (work / "space.yaml").write_text(
        dump(
            {
                "name": "tiny",
                "experiment": "tiny.yaml",
                "parameters": {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
                "trials": 2,
            }
        )
    )
    search = ("--", "search", "space.yaml", "--run", run)
    submit = ("cluster", "submit", "--address", head.jobs, "--python", sys.executable)
    started = head.call(*submit, "--no-wait", *search, "train.epochs=2000", cwd=work)
    assert started.returncode == 0, started.stderr
    job = started.stderr.partition("job ")[2].split()[0]
    wait_for(lambda: any(run.glob("trials/*/checkpoints/last.pt")), lambda: "no checkpoint", seconds=120)
    stopped = head.call("cluster", "stop", job, "--address", head.jobs)
    assert stopped.stdout.strip() == f"{job}: stopped", stopped.stderr
    logs = head.call("cluster", "logs", job, "--address", head.jobs).stdout
    assert "running trials save a checkpoint" in logs
    assert "left behind" not in logs
    status = json.loads(head.call("search", "status", run, "--json").stdout)
    assert not status["is_alive"]
    assert status["counts"]["running"] >= 1


@pytest.mark.parametrize(
    "inherited", ["pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})", "signal(signal.SIGINT, signal.SIG_IGN)"]
)
def test_sigterm_interrupts_where_sigint_is_blocked_by_ray_or_ignored_by_a_shell(inherited: str) -> None:
    code = f"""
import os, signal
from cdn_tune.cli.show.output import terminable
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.{inherited}
held = signal.pthread_sigmask(signal.SIG_BLOCK, set())
try:
    with terminable():
        os.kill(os.getpid(), signal.SIGTERM)
        import time
        time.sleep(20)
except KeyboardInterrupt:
    print("interrupted", held == signal.pthread_sigmask(signal.SIG_BLOCK, set()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == ["interrupted", "True"], result.stderr
