"""`cdn-tune cluster logs`: what a job has printed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

from typer import Exit, Option

from cdn_tune.cli.app import cluster_app
from cdn_tune.cli.options import JobArgument, Server
from cdn_tune.cli.show.output import INTERRUPTED, interruptible, print_log, print_note

if TYPE_CHECKING:
    from cdn_tune.distributed.jobs import Job, Jobs

SETTLE_SECONDS = 30.0  # from the end of a job's process to its state
# What Ray itself writes into a job's log, before the job does and between.
_RAYS = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+\t(DEBUG|INFO|WARNING|ERROR) \S+:\d+ -- |Running entrypoint for job ")
_LONGEST = 1 << 16  # characters of a line that are waited for


@cluster_app.command(epilog="Example: cdn-tune cluster logs raysubmit_1KQUhCSxCZ36MBtE --follow")
def logs(
    job: JobArgument,
    address: Server = None,
    goes_on: Annotated[bool, Option("--follow", help="Go on to its end, with its exit code.")] = False,
) -> None:
    """Print what a job has printed."""
    from cdn_tune.distributed.jobs import Jobs

    jobs = Jobs(address)
    if goes_on:
        follow(jobs, job)
    print_output([jobs.logs(job)])


def follow(jobs: Jobs, job: str, rays: bool = True) -> None:
    """Prints a job's log to its end, and raises `typer.Exit` with its exit code; Ctrl-C leaves the job running.

    Args:
        jobs: The cluster's jobs.
        job: Its id.
        rays: Whether Ray's own lines are printed.
    """
    with interruptible(f"job {job} goes on; cdn-tune cluster logs {job} --follow shows it again"):
        print_output(jobs.follow(job), rays)
        found = jobs.wait(job, SETTLE_SECONDS)
    print_note(f"job {job}: {found.state.lower()}")
    raise Exit(exit_code(found))


def print_output(log: Iterable[str], rays: bool = True) -> None:
    """Prints a log, which comes in any pieces: Ray's own lines to standard error, the job's to standard output."""
    for line in _lines(log):
        if not _RAYS.match(line):
            print_log(line)
        elif rays:
            print_note(line.rstrip(), "dim")


def _lines(log: Iterable[str]) -> Iterator[str]:
    rest = ""
    for text in log:
        *lines, rest = (rest + text).splitlines(keepends=True) or [""]
        yield from lines
        if rest.endswith("\n") or len(rest) > _LONGEST:
            yield rest
            rest = ""
    yield rest


def exit_code(job: Job) -> int:
    """Returns a job's exit code: its process's, 130 if it was stopped, 1 if it never ran."""
    return {"SUCCEEDED": 0, "STOPPED": INTERRUPTED}.get(job.state, job.exit_code or 1)
