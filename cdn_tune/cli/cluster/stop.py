"""`cdn-tune cluster stop`: a job ended in order."""

from cdn_tune.cli.app import cluster_app
from cdn_tune.cli.cluster.logs import SETTLE_SECONDS
from cdn_tune.cli.options import JobArgument, Server, Wait
from cdn_tune.cli.show.output import err, print_line


@cluster_app.command(epilog="Example: cdn-tune cluster stop raysubmit_1KQUhCSxCZ36MBtE")
def stop(job: JobArgument, address: Server = None, wait: Wait = True) -> None:
    """Stop a job in order: trials save a checkpoint, and the same command goes on with them."""
    from cdn_tune.distributed.jobs import STOP_SECONDS, Jobs

    jobs = Jobs(address)
    found = jobs.job(job)
    if found.has_ended:
        print_line(f"{job}: has ended already ({found.state.lower()})")
        return
    jobs.stop(job)
    state = "asked to stop"
    if wait:
        try:
            with err.status("waiting for its trials to save a checkpoint; Ctrl-C leaves it to itself"):
                state = jobs.wait(job, STOP_SECONDS + SETTLE_SECONDS).state.lower()
        except KeyboardInterrupt:
            pass
    print_line(f"{job}: {state}")
