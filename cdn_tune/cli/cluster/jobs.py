"""`cdn-tune cluster jobs`: the jobs of a cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from cdn_tune.cli.app import cluster_app
from cdn_tune.cli.options import Json, Server
from cdn_tune.cli.show.output import duration_text, facts_table, head_table, out, print_json

if TYPE_CHECKING:
    from cdn_tune.distributed.jobs import Job


@cluster_app.command(epilog="Example: cdn-tune cluster jobs --address http://127.0.0.1:8265")
def jobs(address: Server = None, json: Json = False) -> None:
    """List the jobs of a cluster, the latest first."""
    from cdn_tune.distributed.jobs import Jobs

    found = Jobs(address).all()
    if json:
        print_json([asdict(job) for job in found])
    else:
        out.print(jobs_table(found, time.time()))


def print_job(job: str, address: str | None, as_json: bool) -> None:
    """Prints one job."""
    from cdn_tune.distributed.jobs import Jobs

    found = Jobs(address).job(job)
    if as_json:
        print_json(asdict(found))
    else:
        out.print(facts_table(job_facts(found, time.time())))


def jobs_table(jobs: Sequence[Job], now: float) -> Table:
    """Returns jobs as a table."""
    table = head_table("job", "state", "started", "took", "command", right=("took",), fold=("command",))
    for job in jobs:
        style = {"FAILED": "red", "RUNNING": "cyan", "PENDING": "cyan"}.get(job.state, "")
        table.add_row(job.id, job.state.lower(), _when(job), _took(job, now), escape(_what(job)), style=style)
    return table


def job_facts(job: Job, now: float) -> list[tuple[str, str]]:
    """Returns a job's recorded facts as (name, text)."""
    facts = [("job", job.id), ("state", job.state.lower()), ("command", _what(job)), ("started", _when(job))]
    facts += [("took", _took(job, now)), ("exit code", "" if job.exit_code is None else str(job.exit_code))]
    return [(head, text) for head, text in (*facts, ("message", job.message)) if text]


def _what(job: Job) -> str:
    return job.metadata.get("cdn_tune", job.command)


def _when(job: Job) -> str:
    return "" if job.started is None else f"{datetime.fromtimestamp(job.started).astimezone():%Y-%m-%d %H:%M}"


def _took(job: Job, now: float) -> str:
    return "" if job.started is None else duration_text(max((job.ended or now) - job.started, 1.0))
