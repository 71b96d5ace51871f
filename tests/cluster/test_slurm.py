"""The sbatch script, rehearsed without Slurm: stand-ins for srun and scontrol start real raylets on this machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump
from cdn_tune.errors import CdnTuneError
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.study.ranking import own

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "cluster" / "slurm" / "search.sbatch"
BIN = Path(__file__).parent / "slurm_bin"
HEAD, WORKER = "127.0.0.2", "127.0.0.3"
Tiny = Callable[..., Experiment]


@dataclass
class Job:
    """A Slurm job whose machines are loopback addresses.

    Attributes:
        folder: The folder it is submitted from, which also stands for the shared home.
        number: Its number, which also decides on Ray's ports.
        starts: How often it was started.
    """

    folder: Path
    number: int
    starts: int = 0
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """What the job prints, over all starts."""
        return self.folder / "slurm.log"

    @property
    def port(self) -> int:
        """Where its Ray is to be reached, as the script chooses it."""
        return 20000 + self.number % 4000 * 10

    @property
    def ray_folder(self) -> Path:
        """Where the script has Ray put its sockets and logs."""
        return Path(f"/tmp/cdn-tune-ray-{self.number}")  # noqa: S108 - the script's choice

    @property
    def calls(self) -> list[str]:
        """What was asked of Slurm."""
        calls = self.folder / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Starts the job as Slurm does: from a copy of the script elsewhere, in the folder it was submitted from."""
        spool = self.folder / "spool"
        spool.mkdir(exist_ok=True)
        script = shutil.copy(SCRIPT, spool / "slurm_script")
        settings = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "CDN_TUNE_VENV": sys.prefix,
            "CDN_TUNE_JOIN_SECONDS": "240",
            "FAKE_SLURM": str(self.folder),
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": str(self.number),
            "SLURM_JOB_NODELIST": f"{HEAD},{WORKER}",
            "SLURM_NNODES": "2",
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_RESTART_COUNT": str(self.starts),
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                ["bash", str(script), *arguments],
                cwd=self.folder,
                env={**kept, **settings, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.starts += 1
        self.processes.append(process)
        return process

    def said(self) -> str:
        """All that was printed, by the job and by its Ray nodes; shown when something goes wrong."""
        files = [self.log, *sorted(self.folder.glob("slurm-*-nodes/*.log"))]
        return "\n".join(f"--- {file.name}\n{file.read_text()}" for file in files if file.exists())

    def left(self) -> list[str]:
        """Command lines of processes that the job has started and that live on."""
        marks = (str(self.ray_folder).encode(), str(self.folder).encode())
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
                if entry.name != str(os.getpid()) and any(mark in line for mark in marks):
                    found.append(f"{entry.name} {line.decode(errors='replace')}")
        return found

    def destroy(self) -> None:
        """Kills whatever a failed test has left of the job: of this job, by its folders' names, and nothing else."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for line in self.left():
            with contextlib.suppress(OSError):
                os.kill(int(line.split()[0]), signal.SIGKILL)
        shutil.rmtree(self.ray_folder, ignore_errors=True)


@pytest.fixture
def job(tmp_path: Path, ray_start: None) -> Iterator[Job]:
    """A job whose ports nobody holds."""
    made = next(each for number in range(4000) if _is_free((each := Job(tmp_path, os.getpid() + number)).port))
    yield made
    made.destroy()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HEAD, port)) != 0


def write_space(folder: Path, experiment: Experiment) -> None:
    """Writes a space of two trials on one CPU each, and its experiment."""
    (folder / "experiment.yaml").write_text(dump(experiment.plain()))
    space: dict[str, Any] = {
        "name": "rehearsal",
        "experiment": "experiment.yaml",
        "parameters": {"optim.lr": {"type": "float", "low": 1e-3, "high": 1e-2, "log": True}},
        "trials": 2,
        "early_stopping": {"name": "none"},
        "resources": {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0},
    }
    (folder / "space.yaml").write_text(dump(space))


def epochs(run: Path) -> dict[int, int]:
    """The epochs that each trial has on record."""
    try:
        return {trial.number: len(trial.intermediate_values) for trial in own(read_record(run).entries)}
    except CdnTuneError:
        return {}


def wait_until(job: Job, process: subprocess.Popen[bytes], condition: Callable[[], object]) -> None:
    """Waits for a condition while the job runs."""
    deadline = time.monotonic() + 150
    while not condition():
        assert process.poll() is None, job.said()
        assert time.monotonic() < deadline, job.said()
        time.sleep(0.1)


def check_nothing_is_left(job: Job) -> None:
    """No process, no folder, no secret in what was written."""
    deadline = time.monotonic() + 30
    while job.left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not job.left()
    assert not job.ray_folder.exists()
    token = (job.folder / ".ray" / "auth_token").read_text()
    assert len(token) == 64
    assert (job.folder / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    assert token not in job.said()
    for file in (job.folder / "run").rglob("*"):
        assert not file.is_file() or token.encode() not in file.read_bytes(), file


def test_script_parses() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True, timeout=30)


@pytest.mark.parametrize("script", [SCRIPT, *sorted(BIN.iterdir())], ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    beside_python = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside_python) if beside_python.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    # Left out: matters of taste (SC2250, SC2249), and `set -e` being off in conditions and substitutions, as is meant.
    options = ["--shell=bash", "--enable=all", "--exclude=SC2250,SC2249,SC2310,SC2311,SC2312"]
    done = subprocess.run(
        [shellcheck, *options, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


def test_directives_come_before_the_first_command() -> None:
    """Slurm reads #SBATCH lines only up to the first command."""
    lines = SCRIPT.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    directives = {number for number, line in enumerate(lines) if line.startswith("#SBATCH ")}
    assert max(directives) < first
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SCRIPT.read_text(), flags=re.MULTILINE))
    assert len(options) == len(directives), "a directive that does not read --name or --name=value"
    assert options["signal"] == "B:TERM@300"
    assert {"requeue", "no-kill", "nodes", "gpus-per-node", "cpus-per-task", "mem", "time"} <= set(options)


def test_without_a_space_it_says_so(job: Job) -> None:
    process = job.start()
    assert process.wait(timeout=30) == 2
    assert "no search space" in job.log.read_text()
    assert not job.calls


def test_outside_slurm_it_says_so(tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", str(SCRIPT), "space.yaml"], cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=30
    )
    assert done.returncode != 0
    assert "start this script with sbatch" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_two_raylets_run_a_search_to_its_end(job: Job, tiny: Tiny) -> None:
    write_space(job.folder, tiny())
    process = job.start("space.yaml", "--run", "run")
    assert process.wait(timeout=400) == 0, job.said()
    text = job.log.read_text()
    assert "2 of 2 machines have joined" in text
    assert f"ray start --block --disable-usage-stats --node-ip-address={WORKER}" in "\n".join(job.calls)
    entries = own(read_record(job.folder / "run").entries)
    assert [trial.state for trial in entries] == [TrialState.COMPLETE] * 2, job.said()
    assert not any(call.startswith("requeue") for call in job.calls)
    check_nothing_is_left(job)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_preempted_and_requeued_it_goes_on_where_it_stopped(job: Job, tiny: Tiny) -> None:
    """SIGTERM to the batch script alone, as ``--signal=B:TERM`` sends it; then the same job once more."""
    write_space(job.folder, tiny(**{"train.epochs": 250}))
    run = job.folder / "run"
    process = job.start("space.yaml", "--run", "run")
    wait_until(job, process, lambda: len(epochs(run)) == 2 and min(epochs(run).values()) >= 2)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=240) == 0, job.said()
    assert [call for call in job.calls if not call.startswith("srun")] == [f"requeue {job.number}"]
    assert "the same command goes on" in job.log.read_text()
    check_nothing_is_left(job)
    before = epochs(run)
    assert all(2 <= done < 250 for done in before.values()), before
    assert all(list((run / "trials" / f"{number:04d}").rglob("last.pt")) for number in before)

    process = job.start("space.yaml", "--run", "run")
    assert process.wait(timeout=500) == 0, job.said()
    entries = own(read_record(run).entries)
    assert {trial.number: trial.state for trial in entries} == dict.fromkeys(before, TrialState.COMPLETE), job.said()
    assert epochs(run) == dict.fromkeys(before, 250)
    assert "start number 1" in job.log.read_text()
    assert len([call for call in job.calls if call.startswith("requeue")]) == 1
    check_nothing_is_left(job)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_strangers_cannot_use_its_ray(job: Job, tiny: Tiny) -> None:
    """Who brings no token, or a wrong one, is not let in; who brings the right one is."""
    write_space(job.folder, tiny(**{"train.epochs": 100_000}))
    process = job.start("space.yaml", "--run", "run")
    wait_until(job, process, lambda: epochs(job.folder / "run"))
    join = f"import ray; ray.init(address='{HEAD}:{job.port}', logging_level='ERROR'); print('let in')"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    token = (job.folder / ".ray" / "auth_token").read_text()
    for settings, allowed in (
        ({"RAY_AUTH_MODE": "disabled"}, False),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, False),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}, True),
    ):
        environment = {**kept, "HOME": str(job.folder / "elsewhere"), **settings}
        command = [sys.executable, "-c", join]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert ("let in" in done.stdout) == allowed, done.stderr
        assert allowed or "uthentication" in done.stderr, done.stderr
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=240) == 0, job.said()
    check_nothing_is_left(job)
