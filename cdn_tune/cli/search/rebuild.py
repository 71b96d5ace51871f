"""`cdn-tune search rebuild`: a lost or damaged study made anew from what the run folder records."""

from cdn_tune.cli.app import search_app
from cdn_tune.cli.options import SearchRun, Storage, local_run
from cdn_tune.cli.show.output import print_line, warn


@search_app.command(epilog="Example: cdn-tune search rebuild runs/charades-quick")
def rebuild(run: SearchRun, storage: Storage = None) -> None:
    """Make a lost or damaged study anew, from leaderboard.json, each trial's metrics, best/ and what is left of it.

    The same search command then goes on. What is left of the study is set aside.
    """
    from cdn_tune.training.object_store.working_copy import shown
    from cdn_tune.tuning.rebuild import rebuild as make_anew

    run = local_run(run, models=True, trials=True)
    found = make_anew(run, storage)
    for line in found.notes:
        warn(line)
    if found.unknown:
        numbers = ", ".join(map(str, found.unknown))
        warn(f"the parameters of {numbers} are on no record; their numbers are not used again")
    states = ", ".join(f"{count} {state}" for state, count in found.counts.items())
    print_line(f"{shown(run)}: made its study anew ({states or 'no trial'}) in {found.storage}")
    for path in found.set_aside:
        print_line(f"set aside: {path}")
    print_line("the same search command goes on")
