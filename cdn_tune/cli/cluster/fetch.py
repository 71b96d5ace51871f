"""`cdn-tune cluster fetch`: a run folder, brought from the cluster to this machine."""

from pathlib import Path
from typing import Annotated

from rich.progress import BarColumn, DownloadColumn, TransferSpeedColumn
from typer import Argument, Option

from cdn_tune.cli.app import cluster_app
from cdn_tune.cli.options import RemotePython, Server
from cdn_tune.cli.show.output import interruptible, print_line, warn
from cdn_tune.cli.show.progress import counted
from cdn_tune.errors import RunError


@cluster_app.command(epilog="Example: cdn-tune cluster fetch /shared/runs/core --to runs/core")
def fetch(
    run: Annotated[str, Argument(metavar="RUN", help="Run folder, by its path on the head node.")],
    to: Annotated[
        Path | None, Option(metavar="DIR", help="Where to.", show_default="runs/<name of the folder>")
    ] = None,
    address: Server = None,
    states: Annotated[
        bool, Option("--states", help="Also what trials go on from (last.pt), three times a model's size each.")
    ] = False,
    python: RemotePython = "python",
) -> None:
    """Fetch a run folder: record, curves, best checkpoints. Run again, it fetches what has changed."""
    from cdn_tune.distributed.fetch import fetch as fetch_run
    from cdn_tune.distributed.jobs import Jobs
    from cdn_tune.training.runs.checkpoint import BEST
    from cdn_tune.training.runs.kept import CHECKPOINT, KEPT

    if "://" in run:
        raise RunError(f"{run}: lies in an object store; copy it with the store's own tool (aws s3 sync, gsutil rsync)")
    if not Path(run).is_absolute():
        raise RunError(f"{run}: name the run folder by its whole path on the cluster, e.g. /shared/runs/{run}")
    to = to or Path("runs") / Path(run).name
    columns = ("fetching", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with interruptible("the same command goes on where it stopped"), counted("", *columns) as progress:
        fetched = fetch_run(Jobs(address), run, to, states=states, python=python, on_progress=progress)
    for name in fetched.changed_here:
        warn(f"{to / name}: was changed here, and is left as it is")
    print_line(f"{to}: {fetched.files} files as on the cluster, {fetched.received / 1e6:.1f} MB received")
    for path in sorted((to / KEPT).glob(f"*/{CHECKPOINT}")) or [path for path in [to / BEST] if path.exists()]:
        print_line(f"best checkpoint: {path}")
