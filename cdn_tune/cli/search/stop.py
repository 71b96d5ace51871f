"""`cdn-tune search stop`: a running search ended in order."""

import time

from cdn_tune.cli.app import search_app
from cdn_tune.cli.options import SearchRun, Wait, local_run
from cdn_tune.cli.show.output import err, print_line
from cdn_tune.errors import RunError

_WAIT_SECONDS = 0.5


@search_app.command(epilog="Example: cdn-tune search stop runs/charades-quick")
def stop(run: SearchRun, wait: Wait = True) -> None:
    """Stop a search in order: its trials save a checkpoint, and the same command goes on with it."""
    from cdn_tune.training.object_store.working_copy import shown
    from cdn_tune.training.runs.run_folder import read_manifest
    from cdn_tune.tuning.layout import StopFile
    from cdn_tune.tuning.results.status import is_held

    run = local_run(run)
    if read_manifest(run)["kind"] != "search":
        raise RunError(f"{run}: holds a train run; Ctrl-C, or SIGTERM to its process, stops it with a checkpoint")
    if not is_held(run):
        print_line(f"{shown(run)}: no search is running there")
        return
    StopFile(run).raise_it()
    if wait:
        with err.status("waiting for running trials to save a checkpoint"):
            while is_held(run):
                time.sleep(_WAIT_SECONDS)
    print_line(f"{shown(run)}: {'stopped; the same command goes on' if wait else 'asked to stop'}")
