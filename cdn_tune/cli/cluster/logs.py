"""`cdn-tune cluster logs`: what a job has printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from typer import Exit, Option

from cdn_tune.cli.app import cluster_app
from cdn_tune.cli.options import JobArgument, Server
from cdn_tune.cli.show.output import INTERRUPTED, interruptible, print_log, print_note

if TYPE_CHECKING:
    from cdn_tune.distributed.jobs import Job, Jobs

SETTLE_SECONDS = 30.0  # from the end of a job's process to its state


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
    print_log(jobs.logs(job))


def follow(jobs: Jobs, job: str) -> None:
    """Prints a job's log to its end, and raises `typer.Exit` with its exit code; Ctrl-C leaves the job running."""
    with interruptible(f"job {job} goes on; cdn-tune cluster logs {job} --follow shows it again"):
        for text in jobs.follow(job):
            print_log(text)
        found = jobs.wait(job, SETTLE_SECONDS)
    print_note(f"job {job}: {found.state.lower()}")
    raise Exit(exit_code(found))


def exit_code(job: Job) -> int:
    """Returns a job's exit code: its process's, 130 if it was stopped, 1 if it never ran."""
    return {"SUCCEEDED": 0, "STOPPED": INTERRUPTED}.get(job.state, job.exit_code or 1)
