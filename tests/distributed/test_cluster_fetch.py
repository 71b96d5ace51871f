"""Fetching a run: what is sent is what arrives, over interruptions, and never over something else."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.distributed import fetch as fetching
from cdn_tune.distributed.fetch import RECORD, digests, fetch
from cdn_tune.distributed.fetch_protocol import Request, listing, snapshot
from cdn_tune.distributed.jobs import Job
from cdn_tune.errors import ClusterError, RunError

SECONDS = 30.0


@dataclass
class LocalJobs:
    """Jobs that run on this machine, their logs in a folder, as Ray keeps them; `spoil` changes what is read of one."""

    folder: Path
    spoil: Callable[[str], str] = str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)

    def submit(self, command: str, runtime_env: dict[str, Any], *_: Any) -> str:
        job = f"job-{len(self.processes)}"
        shipped = self.folder / job
        shipped.mkdir(parents=True)
        for file in Path(runtime_env["working_dir"]).iterdir():
            (shipped / file.name).write_bytes(file.read_bytes())
        with self.log(job).open("ab") as log:
            log.write(b"Running entrypoint\n")
            log.flush()
            self.processes[job] = subprocess.Popen(["sh", "-c", command], cwd=shipped, stdout=log)
        return job

    def log(self, job: str) -> Path:
        return self.folder / f"{job}.log"

    def follow(self, job: str) -> Iterator[str]:
        deadline = time.monotonic() + SECONDS
        with self.log(job).open() as log:
            while time.monotonic() < deadline:
                line = log.readline()
                if line:
                    yield self.spoil(line)
                elif self.processes[job].poll() is not None:
                    return
                else:
                    time.sleep(0.01)
        raise AssertionError("the job sends nothing")

    def job(self, job: str) -> Job:
        state = "RUNNING" if self.processes[job].poll() is None else "STOPPED"
        return Job(job, state, "", "", None, None, None, {})

    def stop(self, job: str) -> bool:
        self.processes[job].send_signal(signal.SIGTERM)
        return True

    def wait(self, job: str, seconds: float) -> Job:
        self.processes[job].wait(timeout=seconds)
        return self.job(job)

    def forget(self, job: str) -> None:
        self.forgotten.append(job)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[LocalJobs]:
    found = LocalJobs(tmp_path / "jobs")
    yield found
    for process in found.processes.values():
        process.kill()
        process.wait(timeout=10)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with all that makes trouble: a database, a second name, a state, a link that leads out."""
    run = tmp_path / "there" / "a run"
    (run / "best/trial-0001").mkdir(parents=True)
    (run / "trials/0001/checkpoints").mkdir(parents=True)
    (run / "manifest.json").write_text('{"kind": "search", "run_id": "1"}')
    (run / "best/trial-0001/checkpoint.pt").write_bytes(bytes(range(256)) * 8000)
    (run / "trials/0001/checkpoints/best.pt").hardlink_to(run / "best/trial-0001/checkpoint.pt")
    (run / "trials/0001/checkpoints/last.pt").write_bytes(b"state")
    (run / "trials/0001/metrics.jsonl").write_text('{"epoch": 1}\n')
    (run / "empty.log").touch()
    (run / ".lock").touch()
    (run / ".leaderboard.csv.1.tmp").write_text("half")
    (tmp_path / "secret").write_text("not of the run")
    (run / "link").symlink_to(tmp_path / "secret")
    database = sqlite3.connect(run / "study.db")
    database.execute("create table studies (name)")
    database.execute("insert into studies values ('one')")
    database.commit()
    database.close()
    return run


def bring(jobs: LocalJobs, run: Path, to: Path, states: bool = False) -> fetching.Fetched:
    return fetch(jobs, str(run), to, states=states, python=sys.executable, on_progress=lambda *_: None)


def without(files: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: files[name] for name in files if name not in names}


NOT_SENT = ("trials/0001/checkpoints/last.pt", "link", ".leaderboard.csv.1.tmp", "study.db")


def test_all_of_a_run_arrives_once(jobs: LocalJobs, run: Path, tmp_path: Path) -> None:
    to = tmp_path / "here" / "run"
    fetched = bring(jobs, run, to)
    assert without(digests(to), "study.db") == without(digests(run), *NOT_SENT)
    assert fetched.files == len(digests(to)) == 6
    assert fetched.received < 2_100_000, "a file with two names came twice"
    assert sqlite3.connect(to / "study.db").execute("select name from studies").fetchall() == [("one",)]
    assert [path.name for path in to.parent.iterdir()] == ["run"]
    assert jobs.log("job-0").read_bytes() == b"", "the run is left in the log"
    assert jobs.forgotten == ["job-0"]
    again = bring(jobs, run, to)
    assert again.received == 0
    assert again.files == 6


def test_states_come_when_asked_for(jobs: LocalJobs, run: Path, tmp_path: Path) -> None:
    bring(jobs, run, tmp_path / "to", states=True)
    assert (tmp_path / "to/trials/0001/checkpoints/last.pt").read_bytes() == b"state"


def test_a_large_run_comes_by_several_jobs(
    jobs: LocalJobs, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_JOB_BYTES", 900_000)
    fetched = bring(jobs, run, tmp_path / "to")
    assert len(jobs.processes) > 2
    assert without(digests(tmp_path / "to"), "study.db") == without(digests(run), *NOT_SENT)
    assert fetched.received < 2_100_000, "something was sent twice"


def test_what_was_broken_off_goes_on(jobs: LocalJobs, run: Path, tmp_path: Path) -> None:
    seen = 0

    def interrupt(line: str) -> str:
        nonlocal seen
        seen += " data " in line
        if seen == 4:
            raise KeyboardInterrupt
        return line

    jobs.spoil = interrupt
    with pytest.raises(KeyboardInterrupt):
        bring(jobs, run, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    assert jobs.log("job-0").read_bytes() == b""
    jobs.spoil = str
    fetched = bring(jobs, run, tmp_path / "to")
    assert 0 < fetched.received < 1_500_000
    assert without(digests(tmp_path / "to"), "study.db") == without(digests(run), *NOT_SENT)


def test_a_damaged_file_is_not_kept(jobs: LocalJobs, run: Path, tmp_path: Path) -> None:
    jobs.spoil = lambda line: line.replace("AAECAw", "AAECBA") if " data " in line else line
    with pytest.raises(
        ClusterError, match=r"what arrives is damaged \(.*checkpoint\.pt: its digest is another\); run the same"
    ):
        bring(jobs, run, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    jobs.spoil = str
    bring(jobs, run, tmp_path / "to")
    assert without(digests(tmp_path / "to"), "study.db") == without(digests(run), *NOT_SENT)


def test_what_has_changed_there_comes_and_what_was_changed_here_stays(
    jobs: LocalJobs, run: Path, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    (run / "looks.jsonl").write_text("there\n")
    bring(jobs, run, to)
    with (run / "trials/0001/metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2}\n')
    (run / "looks.jsonl").write_text("there\nagain\n")
    (to / "looks.jsonl").write_text("here\n")
    (to / "evaluation.json").write_text("{}")
    fetched = bring(jobs, run, to)
    assert fetched.changed_here == ["looks.jsonl"]
    assert (to / "looks.jsonl").read_text() == "here\n"
    assert (to / "evaluation.json").exists()
    assert (to / "trials/0001/metrics.jsonl").read_text() == '{"epoch": 1}\n{"epoch": 2}\n'
    assert 0 < fetched.received < 100, "more than the new line came"


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ({"manifest.json": '{"kind": "search", "run_id": "2"}'}, "holds another run"),
        ({"mine.txt": "x"}, "is no run folder"),
    ],
)
def test_another_folder_is_never_written_to(
    there: dict[str, str], told: str, jobs: LocalJobs, run: Path, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    to.mkdir()
    for name, text in there.items():
        (to / name).write_text(text)
    with pytest.raises(RunError, match=told):
        bring(jobs, run, to)
    assert {path.name: path.read_text() for path in to.iterdir()} == there


def test_a_run_that_is_not_there_is_told(jobs: LocalJobs, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder, as the head node sees it"):
        bring(jobs, tmp_path / "nowhere", tmp_path / "to")
    with pytest.raises(RunError, match="is not a run folder"):
        bring(jobs, tmp_path, tmp_path / "to")


def test_a_job_that_cannot_send_is_told(jobs: LocalJobs, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="ended before all was sent"):
        fetch(jobs, str(run), tmp_path / "to", states=False, python="/nowhere/python", on_progress=lambda *_: None)


def test_a_database_is_sent_as_it_was_at_one_time(run: Path, tmp_path: Path) -> None:
    writer = sqlite3.connect(run / "study.db")
    writer.execute("insert into studies values ('half')")  # not committed
    try:
        copy = snapshot(run / "study.db", tmp_path)
        assert copy != run / "study.db"
        assert sqlite3.connect(copy).execute("select name from studies").fetchall() == [("one",)]
        assert "study.db-journal" not in listing(run, Request(str(run), {}, (), 1))
    finally:
        writer.close()


def test_the_record_names_what_was_fetched(jobs: LocalJobs, run: Path, tmp_path: Path) -> None:
    bring(jobs, run, tmp_path / "to")
    record = json.loads((tmp_path / "to" / RECORD).read_text())
    assert record == {name: digest for name, (_, digest) in digests(tmp_path / "to").items()}
    assert os.path.samefile(
        tmp_path / "to/best/trial-0001/checkpoint.pt", tmp_path / "to/trials/0001/checkpoints/best.pt"
    )
