"""The sbatch scripts, submitted to a real Slurm of two nodes on this machine.

First what they do with Slurm, with stand-ins for `ray` and `cdn-tune` that start at once; then everything in earnest.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump
from cdn_tune.errors import CdnTuneError
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.study.ranking import own

from .slurm import NODES, Job, Slurm, missing

ROOT = Path(__file__).resolve().parents[2]
SEARCH = ROOT / "cluster" / "slurm" / "search.sbatch"
TRAIN = ROOT / "cluster" / "slurm" / "train.sbatch"
# No GPUs, and less of all else than a real node has.
SMALL = ("--gpus-per-node=0", "--mem=0", "--cpus-per-task=1", "--time=30")
LONG = 900.0  # seconds that a wait may take on a machine with much else to do
Tiny = Callable[..., Experiment]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """A Slurm, and a folder with a short name that jobs are submitted from, their home."""
    if missing():
        pytest.skip(f"Slurm is not installed: {', '.join(missing())}")
    folder = Path(tempfile.mkdtemp(prefix="cdn-slurm-"))
    made = Slurm(folder)
    try:
        made.start()
        yield made
    finally:
        left = made.stop()
        shutil.rmtree(folder)
    assert not left


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [SEARCH, TRAIN], ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    beside_python = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside_python) if beside_python.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    # Left out: matters of taste (SC2250, SC2249), and `set -e` being off in conditions and substitutions, as is meant.
    options = ["--shell=bash", "--enable=all", "--exclude=SC2250,SC2249,SC2310,SC2311,SC2312"]
    done = subprocess.run([shellcheck, *options, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [SEARCH, TRAIN], ids=lambda script: script.name)
def test_directives_come_before_the_first_command(script: Path) -> None:
    """Slurm reads #SBATCH lines only up to the first command."""
    lines = script.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    directives = {number for number, line in enumerate(lines) if line.startswith("#SBATCH ")}
    assert max(directives) < first
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", script.read_text(), flags=re.MULTILINE))
    assert len(options) == len(directives), "a directive that does not read --name or --name=value"
    assert options["signal"].startswith("B:TERM@")
    assert {"requeue", "nodes", "gpus-per-node", "cpus-per-task", "mem", "time"} <= set(options)
    assert ("no-kill" in options) == (script.name == SEARCH.name)


@pytest.mark.parametrize("script", [SEARCH, TRAIN], ids=lambda script: script.name)
def test_outside_slurm_it_says_so(script: Path, tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", str(script), "space.yaml"], cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=30
    )
    assert done.returncode != 0
    assert "start this script with sbatch" in done.stderr
    assert not list(tmp_path.iterdir())


# --- Slurm in earnest, stand-ins for what it runs --------------------------------------------------------------------

# In place of `ray start --block`: runs until it is asked to end.
_RAY = """\
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
folder = next(word for word in sys.argv if word.startswith("--temp-dir="))
pathlib.Path(folder.partition("=")[2]).mkdir(exist_ok=True)
while os.path.exists("ray-is-slow"): time.sleep(0.1)
print("Ray runtime started.", *sys.argv[1:], flush=True)
time.sleep(600)
"""
# In place of `cdn-tune`: runs until it is asked to end, saves, and does not end well; its second start ends at once.
_CDN_TUNE = """\
import os, pathlib, signal, sys, time
saved = pathlib.Path("saved-" + os.environ["SLURM_JOB_ID"])
def save(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1)
    saved.touch()
    print("saved", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
print("called with", *sys.argv[1:], flush=True)
if saved.exists(): sys.exit(print("going on"))
time.sleep(600)
"""


@pytest.fixture(scope="module")
def stand_ins(slurm: Slurm) -> str:
    """An environment whose `ray` and `cdn-tune` only wait."""
    folder = slurm.folder / "stand-ins" / "bin"
    folder.mkdir(parents=True)
    python = f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n'
    run = f"#!{sys.executable} -ISu\n"
    for name, text in (("ray", run + _RAY), ("cdn-tune", run + _CDN_TUNE), ("python", python)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return str(folder.parent)


def ray_folder(job: Job) -> Path:
    """Where a search's script has Ray put its sockets and logs."""
    return Path(f"/tmp/cdn-tune-ray-{job.number}")  # noqa: S108 - the script's choice


def test_every_refusal_is_one_line_in_the_log(slurm: Slurm, stand_ins: str) -> None:
    """What goes wrong before the search starts; all at once, since none takes long."""
    tools = {}
    for tool, does in (
        ("getent", "exit 2"),
        ("scontrol", "exit 1"),
        ("mkdir", 'case $* in *-nodes*) echo "mkdir: no space" >&2; exit 1 ;; esac; exec /bin/mkdir "$@"'),
    ):
        folder = slurm.folder / f"broken-{tool}"
        folder.mkdir()
        (folder / tool).write_text(f"#!/bin/sh\n{does}\n")
        (folder / tool).chmod(0o755)
        tools[tool] = f"{folder}:{slurm.environment['PATH']}"
    (slurm.folder / "empty").touch()
    (slurm.folder / "without ray" / "bin").mkdir(parents=True)
    for name in ("cdn-tune", "python"):
        shutil.copy(Path(stand_ins) / "bin" / name, slurm.folder / "without ray" / "bin")
    cases: list[tuple[Path, str, tuple[str, ...], dict[str, str]]] = [
        (SEARCH, "no search space; usage: sbatch", (), {}),
        (TRAIN, "no experiment; usage: sbatch", (), {}),
        (SEARCH, "no cdn-tune in /nowhere/bin", ("space",), {"CDN_TUNE_VENV": "/nowhere"}),
        (TRAIN, "no cdn-tune in /nowhere/bin", ("experiment",), {"CDN_TUNE_VENV": "/nowhere"}),
        (TRAIN, "%a stands for a task's number", ("experiment", "seed=%a"), {}),
        (SEARCH, "no token in /dev/null/token", ("space",), {"RAY_AUTH_TOKEN_PATH": "/dev/null/token"}),
        (SEARCH, "no token in ", ("space",), {"RAY_AUTH_TOKEN_PATH": str(slurm.folder / "empty")}),
        (
            SEARCH,
            "n0: neither this name nor Slurm's address of it, 127.0.0.2, resolves",
            ("space",),
            {"PATH": tools["getent"]},
        ),
        (SEARCH, '"names=$(scontrol show hostnames', ("space",), {"PATH": tools["scontrol"]}),
        (SEARCH, '"mkdir -p "$logs"" failed (exit code 1)', ("space",), {"PATH": tools["mkdir"]}),
        (SEARCH, "Ray did not start on n0; see", ("space",), {"CDN_TUNE_VENV": str(slurm.folder / "without ray")}),
    ]
    jobs = []
    for script, said, arguments, environment in cases:
        settings = {"CDN_TUNE_VENV": stand_ins, **environment}
        options = (*SMALL, *(("--nodes=1", "--nodelist=n0") if script == SEARCH else ()), "--oversubscribe")
        jobs.append((said, slurm.submit(script, *arguments, options=options, **settings)))
    for said, job in jobs:
        job.wait_for("FAILED", seconds=90)
        ours = [line for line in job.log.splitlines() if re.search(r"(search|train)\.sbatch: ", line)]
        assert len(ours) == 1, f"{said}\n{job.log}"
        assert said in ours[0]
        assert job.facts["ExitCode"] in ("1:0", "2:0")


def test_where_names_do_not_resolve_slurms_addresses_are_taken(slurm: Slurm, stand_ins: str) -> None:
    """Two machines join; asked to end, the search saves, the job goes back into the queue, and then to its end."""
    job = slurm.submit(SEARCH, "space.yaml", "--run", "a run", options=SMALL, CDN_TUNE_VENV=stand_ins)
    job.wait_until(lambda: "called with" in job.log)
    assert "2 of 2 machines have joined" in job.log
    for node, address in NODES.items():
        assert (
            f"--node-ip-address={address}" in (slurm.folder / f"slurm-{job.number}-nodes" / f"{node}.log").read_text()
        )
    port = 20000 + int(job.number) % 4000 * 10
    assert f"called with search space.yaml --run a run --address 127.0.0.2:{port}\n" in job.log
    assert ray_folder(job).exists()
    job.cancel("--batch", "--signal=TERM")
    job.wait_for("COMPLETED")
    assert job.facts["Restarts"] == "1"
    assert "saved\n" in job.log
    assert "start number 1" in job.log
    assert "going on\n" in job.log
    assert not ray_folder(job).exists()
    assert (slurm.folder / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_cancelled_search_stays_cancelled(slurm: Slurm, stand_ins: str) -> None:
    """Slurm would put a job that is ending back into the queue, if its own script asked."""
    job = slurm.submit(SEARCH, "space", options=SMALL, CDN_TUNE_VENV=stand_ins)
    job.wait_until(lambda: "called with" in job.log)
    job.cancel()
    slurm.wait_until(lambda: job.state == "CANCELLED" and "stopped by Slurm" in job.log)
    assert "saved\n" in job.log
    slurm.wait_until(lambda: not slurm.ask("squeue", "--noheader"))
    assert (job.state, job.facts["Restarts"]) == ("CANCELLED", "0")
    assert not ray_folder(job).exists()


@pytest.mark.slow
def test_a_search_that_an_operator_requeues_goes_on(slurm: Slurm, stand_ins: str) -> None:
    job = slurm.submit(SEARCH, "space", options=SMALL, CDN_TUNE_VENV=stand_ins)
    job.wait_until(lambda: "called with" in job.log)
    job.requeue()
    job.wait_for("COMPLETED")
    assert job.facts["Restarts"] == "1"
    assert "going on\n" in job.log


@pytest.mark.slow
def test_requeued_while_ray_starts_it_starts_again(slurm: Slurm, stand_ins: str) -> None:
    """SIGTERM before there is a search to hand it to."""
    slow = slurm.folder / "ray-is-slow"
    slow.touch()
    job = slurm.submit(SEARCH, "space", options=SMALL, CDN_TUNE_VENV=stand_ins)
    job.wait_until(ray_folder(job).exists)
    job.cancel("--batch", "--signal=TERM")
    job.wait_until(lambda: job.facts["Restarts"] == "1")
    slow.unlink()
    assert "called with" not in job.log
    job.wait_until(lambda: "called with" in job.log)
    assert "2 of 2 machines have joined" in job.log
    job.cancel()
    slurm.wait_until(lambda: not slurm.ask("squeue", "--noheader"))


@pytest.mark.slow
def test_tasks_of_an_array_train_apart(slurm: Slurm, stand_ins: str) -> None:
    job = slurm.submit(
        TRAIN, "e", "seed=%a", "--run", "run-%a", options=(*SMALL, "--array=3-4"), CDN_TUNE_VENV=stand_ins
    )
    tasks = {number: job.task(number) for number in (3, 4)}
    for number, task in tasks.items():
        task.wait_until(lambda task=task: "called with" in task.log)
        assert f"called with train e seed={number} --run run-{number}\n" in task.log
    tasks[4].cancel("--batch", "--signal=TERM")  # the last one, whose number is the whole array's
    tasks[4].wait_for("COMPLETED")
    assert tasks[4].log.count("called with") == 2
    assert "start number 1" in tasks[4].log
    assert tasks[3].log.count("called with") == 1
    tasks[3].cancel()
    slurm.wait_until(lambda: tasks[3].state == "CANCELLED" and "stopped by Slurm" in tasks[3].log)
    shared = slurm.submit(TRAIN, "e", "seed=%a", options=(*SMALL, "--array=1"), CDN_TUNE_VENV=stand_ins).task(1)
    shared.wait_for("FAILED")
    assert "all tasks would train in one run folder" in shared.log


# --- everything in earnest -------------------------------------------------------------------------------------------


def write_space(folder: Path, experiment: Experiment) -> Path:
    """Writes a space of two trials on one CPU each, and its experiment; returns its file."""
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
    return folder / "space.yaml"


def epochs(run: Path) -> dict[int, int]:
    """The epochs that each trial has on record."""
    try:
        return {trial.number: len(trial.intermediate_values) for trial in own(read_record(run).entries)}
    except CdnTuneError:
        return {}


def states(run: Path) -> dict[int, TrialState]:
    """The state of each trial."""
    return {trial.number: trial.state for trial in own(read_record(run).entries)}


def start_search(slurm: Slurm, folder: Path, *options: str) -> tuple[Job, Path]:
    """Submits the search in a folder; returns the job, and its run folder."""
    run = folder / "run"
    settings = {"PYTHONPATH": str(ROOT), "CDN_TUNE_VENV": sys.prefix, "CDN_TUNE_JOIN_SECONDS": "600"}
    space = str(folder / "space.yaml")
    return slurm.submit(SEARCH, space, "--run", str(run), options=(*SMALL, *options), **settings), run


def check_nothing_is_left(slurm: Slurm, job: Job, run: Path) -> None:
    """No process, no folder, no secret in what was written."""
    slurm.wait_until(lambda: not slurm.ask("squeue", "--noheader"))
    mark = str(ray_folder(job))
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert mark not in lines
    assert not ray_folder(job).exists()
    token = (slurm.folder / ".ray" / "auth_token").read_text()
    assert len(token) == 64
    assert token not in slurm.said()
    for file in run.rglob("*"):
        assert not file.is_file() or token.encode() not in file.read_bytes(), file


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_requeued_it_goes_on_and_cancelled_it_leaves_checkpoints(
    slurm: Slurm, tiny: Tiny, tmp_path: Path, ray_start: None
) -> None:
    """A search over two nodes: put back by an operator, asked to save, cancelled, submitted again, fetched."""
    write_space(tmp_path, tiny(**{"train.epochs": 200}))
    job, run = start_search(slurm, tmp_path)
    job.wait_until(lambda: len(epochs(run)) == 2 and min(epochs(run).values()) >= 2, seconds=LONG)
    assert "2 of 2 machines have joined" in job.log
    job.requeue()
    job.wait_until(lambda: "2 of 2 machines have joined" in job.log.rpartition("stopped by Slurm")[2], seconds=LONG)
    before = epochs(run)
    job.wait_until(lambda: all(now > before[number] for number, now in epochs(run).items()), seconds=LONG)
    assert job.facts["Restarts"] == "1"
    job.cancel("--batch", "--signal=TERM")
    job.wait_until(lambda: "back into the queue" in job.log)
    job.cancel()
    job.wait_for("CANCELLED")
    check_nothing_is_left(slurm, job, run)
    assert "the same command goes on" in job.log
    before = epochs(run)
    assert all(2 <= done < 200 for done in before.values()), before
    assert all(list((run / "trials" / f"{number:04d}").rglob("last.pt")) for number in before)

    again, _ = start_search(slurm, tmp_path)
    again.wait_for("COMPLETED", seconds=LONG)
    assert states(run) == dict.fromkeys(before, TrialState.COMPLETE), again.log
    assert epochs(run) == dict.fromkeys(before, 200)
    check_nothing_is_left(slurm, again, run)

    fetched = tmp_path / "elsewhere" / "run"  # as scp or rsync bring it
    shutil.copytree(run, fetched)
    shutil.move(run, tmp_path / "gone")
    for command in (["leaderboard", str(fetched)], ["evaluate", str(fetched)]):
        done = subprocess.run(
            [sys.executable, "-m", "cdn_tune", *command], capture_output=True, text=True, timeout=LONG
        )
        assert done.returncode == 0, done.stderr
    assert (fetched / "evaluation.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_lost_machine_costs_its_trial_nothing(slurm: Slurm, tiny: Tiny, tmp_path: Path, ray_start: None) -> None:
    """The second machine dies; the job, its search and both trials go on on the first."""
    write_space(tmp_path, tiny(**{"train.epochs": 80}))
    job, run = start_search(slurm, tmp_path)
    job.wait_until(lambda: len(epochs(run)) == 2 and min(epochs(run).values()) >= 2, seconds=LONG)
    slurm.kill_node("n1")
    try:
        job.wait_for("COMPLETED", seconds=LONG)
    finally:
        slurm.start_node("n1")
        slurm.wait_until(lambda: slurm.node_states()["n1"].startswith("IDLE"))
    assert job.facts["Restarts"] == "0"
    assert states(run) == dict.fromkeys(range(2), TrialState.COMPLETE)
    assert epochs(run) == dict.fromkeys(range(2), 80)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_array_of_trainings(slurm: Slurm, tiny: Tiny, tmp_path: Path) -> None:
    """Two seeds as two tasks, one of them put back into the queue in its middle."""
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(dump(tiny(**{"train.epochs": 60}).plain()))
    settings = {"PYTHONPATH": str(ROOT), "CDN_TUNE_VENV": sys.prefix}
    arguments = (str(experiment), "seed=%a", "--run", f"{tmp_path}/run-%a")
    job = slurm.submit(TRAIN, *arguments, options=(*SMALL, "--array=1-2"), **settings)
    first = tmp_path / "run-1" / "metrics.jsonl"
    job.task(1).wait_until(lambda: first.exists() and len(first.read_text().splitlines()) >= 2)
    job.task(1).cancel("--batch", "--signal=TERM")
    for number in (1, 2):
        job.task(number).wait_for("COMPLETED", seconds=LONG)
        lines = (tmp_path / f"run-{number}" / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 60
    assert "start number 1" in job.task(1).log
    assert "going on with tiny" in job.task(1).log


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_strangers_cannot_use_its_ray(slurm: Slurm, tiny: Tiny, tmp_path: Path, ray_start: None) -> None:
    """Who brings no token, or a wrong one, is not let in; who brings the right one is."""
    write_space(tmp_path, tiny(**{"train.epochs": 100_000}))
    job, run = start_search(slurm, tmp_path)
    job.wait_until(lambda: epochs(run), seconds=LONG)
    port = 20000 + int(job.number) % 4000 * 10
    join = f"import ray; ray.init(address='127.0.0.2:{port}', logging_level='ERROR'); print('let in')"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    token = (slurm.folder / ".ray" / "auth_token").read_text()
    for settings, allowed in (
        ({"RAY_AUTH_MODE": "disabled"}, False),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, False),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}, True),
    ):
        environment = {**kept, "HOME": str(tmp_path / "elsewhere"), **settings}
        done = subprocess.run(
            [sys.executable, "-c", join], env=environment, capture_output=True, text=True, timeout=120
        )
        assert ("let in" in done.stdout) == allowed, done.stderr
        assert allowed or "uthentication" in done.stderr, done.stderr
    job.cancel()
    job.wait_for("CANCELLED")
    check_nothing_is_left(slurm, job, run)
