"""`cdn-tune report`: one HTML page of a run, written or served."""

import webbrowser
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from cdn_tune.cli.app import app
from cdn_tune.cli.options import local_run
from cdn_tune.cli.show.output import err, print_line, print_note, warn
from cdn_tune.errors import ConfigError

_PORT = 8080


@app.command(epilog="Example: cdn-tune report runs/charades-quick --open")
def report(
    run: Annotated[Path, Argument(metavar="RUN", help="Folder of a train or search run.")],
    out: Annotated[
        Path | None, Option(metavar="FILE", help="File to write.", show_default="RUN/report/index.html")
    ] = None,
    views: Annotated[
        int, Option(min=0, help="Queries shown with score map and attention; 0: leave the model alone.")
    ] = 60,
    videos: Annotated[
        Path | None, Option(metavar="DIR", help="Folder with the videos: to play them, frames along the timeline.")
    ] = None,
    serve: Annotated[bool, Option("--serve", help="Serve it to this machine, kept live; Ctrl-C ends.")] = False,
    port: Annotated[
        int | None, Option(min=0, max=65535, help="Port of --serve; 0: any free one.", show_default=str(_PORT))
    ] = None,
    open_: Annotated[bool, Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write everything the run recorded as one HTML page that needs no network: to open, to keep, to send around."""
    if serve and out is not None:
        raise ConfigError("--serve writes no file; drop --out FILE, or --serve")
    if not serve and port is not None:
        raise ConfigError("--port PORT is where --serve serves; add --serve, or drop --port")
    if videos is not None and not videos.is_dir():
        raise ConfigError(f"--videos {videos}: is no folder; name the one with the videos")
    run = local_run(run, models=views > 0, trials=True)
    if serve:
        _serve(run, views, _PORT if port is None else port, open_, videos)
        return
    path = write_report(run, out, views, videos)
    if open_:
        webbrowser.open(path.absolute().as_uri())


def write_report(run: Path, file: Path | None = None, views: int | None = None, videos: Path | None = None) -> Path:
    """Writes a run's report, to ``RUN/report/index.html`` if no file is given, prints its path, and returns it.

    Args:
        run: The run folder.
        file: Where it is written.
        views: Queries shown with score map and attention; None: as many as by default.
        videos: Folder with the videos, if they are at hand.
    """
    from cdn_tune.report.page import REPORT, VIEWS, Builder, check_target
    from cdn_tune.training.object_store.lease import is_locked
    from cdn_tune.training.object_store.sync import push_run
    from cdn_tune.training.object_store.working_copy import shown
    from cdn_tune.training.runs.files import write_text

    path = file or run / REPORT
    check_target(path)
    with err.status("building the report"):
        page = Builder(run, VIEWS if views is None else views, videos=videos, place=path.parent).build()
    write_text(path, page.html)
    if file is None and not is_locked(run):
        push_run(path)
    for notice in page.notices:
        warn(notice)
    print_line(f"report: {path if file else shown(path)} ({path.stat().st_size / 1e6:.1f} MB)")
    return path


def _serve(run: Path, views: int, port: int, open_it: bool, videos: Path | None) -> None:
    from cdn_tune.report.serve import HOST, LiveReport, open_server

    with err.status("building the report"):
        report = LiveReport(run, views, warn, videos)
    with open_server(report, port) as server:
        url = f"http://{HOST}:{server.server_address[1]}/"
        print_line(f"report: {url}")
        print_note("served to this machine only; it follows the run. Ctrl-C ends.")
        if open_it:
            webbrowser.open(url)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print_note("no longer served")
