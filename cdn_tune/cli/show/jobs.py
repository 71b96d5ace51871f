"""`cdn-tune cluster jobs`, `logs`, `stop`, `fetch`, and `status` of a job."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import typer
from rich import box
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
from rich.table import Table

from cdn_tune.cli.show.output import err, one_line_errors, out, warn
from cdn_tune.cli.show.plan import duration_text
from cdn_tune.distributed.fetch import fetch
from cdn_tune.distributed.jobs import STOP_SECONDS, Job, Jobs
from cdn_tune.errors import RunError
from cdn_tune.training.loop import BEST
from cdn_tune.training.runs.kept import CHECKPOINT, KEPT

_INTERRUPTED = 130
_SETTLE_SECONDS = 30.0


def run_jobs(address: str | None, as_json: bool) -> None:
    """`cdn-tune cluster jobs`."""
    with one_line_errors():
        found = Jobs(address).all()
        if as_json:
            out.file.write(json.dumps([asdict(job) for job in found], indent=2, ensure_ascii=False) + "\n")
        else:
            out.print(jobs_table(found, time.time()))


def run_job_status(job: str, address: str | None, as_json: bool) -> None:
    """`cdn-tune cluster status JOB`."""
    with one_line_errors():
        found = Jobs(address).job(job)
        if as_json:
            out.file.write(json.dumps(asdict(found), indent=2, ensure_ascii=False) + "\n")
        else:
            out.print(job_table(found, time.time()))


def run_logs(job: str, address: str | None, goes_on: bool) -> None:
    """`cdn-tune cluster logs`."""
    with one_line_errors():
        jobs = Jobs(address)
        if goes_on:
            follow(jobs, job)
        out.file.write(jobs.logs(job))


def run_stop_job(job: str, address: str | None, wait: bool) -> None:
    """`cdn-tune cluster stop`."""
    with one_line_errors():
        jobs = Jobs(address)
        found = jobs.job(job)
        if found.has_ended:
            out.print(f"{job}: has ended already ({found.state.lower()})", markup=False)
            return
        jobs.stop(job)
        if not wait:
            out.print(f"{job}: asked to stop", markup=False)
            return
        try:
            with err.status("waiting for its trials to save a checkpoint; Ctrl-C leaves it to itself"):
                found = jobs.wait(job, STOP_SECONDS + _SETTLE_SECONDS)
        except KeyboardInterrupt:
            out.print(f"{job}: asked to stop", markup=False)
            return
        out.print(f"{job}: {found.state.lower()}", markup=False)


def run_fetch(run: str, to: Path | None, address: str | None, states: bool, python: str) -> None:
    """`cdn-tune cluster fetch`."""
    with one_line_errors():
        if "://" in run:
            raise RunError(
                f"{run}: lies in an object store; copy it with the store's own tool (aws s3 sync, gsutil rsync)"
            )
        if not Path(run).is_absolute():
            raise RunError(f"{run}: name the run folder by its whole path on the cluster, e.g. /shared/runs/{run}")
        to = to or Path("runs") / Path(run).name
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
        try:
            with Progress("fetching", *columns, console=err, transient=True) as progress:
                task = progress.add_task("fetching", total=None)

                def show(received: int, total: int) -> None:
                    progress.update(task, completed=received, total=total)

                fetched = fetch(Jobs(address), run, to, states=states, python=python, on_progress=show)
        except KeyboardInterrupt:
            err.print("interrupted; the same command goes on where it stopped", style="yellow")
            raise typer.Exit(_INTERRUPTED) from None
        for name in fetched.changed_here:
            warn(f"{to / name}: was changed here, and is left as it is")
        size = f"{fetched.received / 1e6:.1f} MB"
        out.print(f"{to}: {fetched.files} files as on the cluster, {size} received", markup=False, soft_wrap=True)
        kept = sorted((to / KEPT).glob(f"*/{CHECKPOINT}")) or [path for path in [to / BEST] if path.exists()]
        for path in kept:
            out.print(f"best checkpoint: {path}", markup=False, soft_wrap=True)


def follow(jobs: Jobs, job: str) -> None:
    """Prints a job's log to its end and leaves with its exit code; Ctrl-C leaves the job alone.

    Raises:
        typer.Exit: Always.
    """
    try:
        for text in jobs.follow(job):
            out.file.write(text)
            out.file.flush()
        found = jobs.wait(job, _SETTLE_SECONDS)
    except KeyboardInterrupt:
        err.print(
            f"\njob {job} goes on; cdn-tune cluster logs {job} --follow shows it again", style="yellow", markup=False
        )
        raise typer.Exit(_INTERRUPTED) from None
    err.print(f"job {job}: {found.state.lower()}", markup=False)
    raise typer.Exit(exit_code(found))


def exit_code(job: Job) -> int:
    """Returns a job's exit code: its process's, 130 if it was stopped, 1 if it never ran."""
    if job.state == "SUCCEEDED":
        return 0
    if job.state == "STOPPED":
        return _INTERRUPTED
    return job.exit_code or 1


def jobs_table(jobs: Sequence[Job], now: float) -> Table:
    """Returns jobs as a table."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for head in ("job", "state", "started"):
        table.add_column(head, no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("command", overflow="fold")
    for job in jobs:
        style = {"FAILED": "red", "RUNNING": "cyan", "PENDING": "cyan"}.get(job.state, "")
        table.add_row(job.id, job.state.lower(), _when(job), _took(job, now), escape(_what(job)), style=style)
    return table


def job_table(job: Job, now: float) -> Table:
    """Returns a job as a table of facts."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    facts = [("job", job.id), ("state", job.state.lower()), ("command", _what(job)), ("started", _when(job))]
    facts += [("took", _took(job, now)), ("exit code", "" if job.exit_code is None else str(job.exit_code))]
    for head, text in (*facts, ("message", job.message)):
        if text:
            table.add_row(head, escape(text))
    return table


def _what(job: Job) -> str:
    return job.metadata.get("cdn_tune", job.command)


def _when(job: Job) -> str:
    return "" if job.started is None else f"{datetime.fromtimestamp(job.started).astimezone():%Y-%m-%d %H:%M}"


def _took(job: Job, now: float) -> str:
    return "" if job.started is None else duration_text(max((job.ended or now) - job.started, 1.0))
