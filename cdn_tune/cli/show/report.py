"""`cdn-tune report`: one HTML page of a run, written or served."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from cdn_tune.cli.show.output import err, one_line_errors, out, warn
from cdn_tune.errors import ConfigError
from cdn_tune.training.object_store.sync import fetched
from cdn_tune.training.object_store.working_copy import shown, url_of

PORT = 8080


def run_report(run: Path, file: Path | None, views: int, *, serve: bool, port: int | None, open_it: bool) -> None:
    """`cdn-tune report`."""
    with one_line_errors():
        if serve and file is not None:
            raise ConfigError("--serve writes no file; drop --out FILE, or --serve")
        if not serve and port is not None:
            raise ConfigError("--port PORT is where --serve serves; add --serve, or drop --port")
        run = run if url_of(run) is None else fetched(run, models=views > 0, trials=True)
        if serve:
            _serve(run, views, PORT if port is None else port, open_it)
            return
        path = write_report(run, file, views)
        if open_it:
            webbrowser.open(path.absolute().as_uri())


def write_report(run: Path, file: Path | None = None, views: int | None = None) -> Path:
    """Writes a run's report and says where.

    Args:
        run: The run folder.
        file: Where to; ``RUN/report/index.html`` if None.
        views: Queries whose score maps and attention are drawn; the usual number if None.
    """
    from cdn_tune.report.page import REPORT, VIEWS, Builder, check_target
    from cdn_tune.training.object_store.lease import is_locked
    from cdn_tune.training.object_store.sync import bring_home
    from cdn_tune.training.runs.files import write_text

    path = file or run / REPORT
    check_target(path)
    with err.status("building the report"):
        page = Builder(run, VIEWS if views is None else views).build()
    write_text(path, page.html)
    if file is None and not is_locked(run):
        bring_home(path)
    for notice in page.notices:
        warn(notice)
    out.print(
        f"report: {path if file else shown(path)} ({path.stat().st_size / 1e6:.1f} MB)", markup=False, soft_wrap=True
    )
    return path


def _serve(run: Path, views: int, port: int, open_it: bool) -> None:
    from cdn_tune.report.serve import HOST, LiveReport, open_server

    with err.status("building the report"):
        report = LiveReport(run, views, warn)
    with open_server(report, port) as server:
        url = f"http://{HOST}:{server.server_address[1]}/"
        out.print(f"report: {url}", markup=False, soft_wrap=True)
        err.print("served to this machine only; it follows the run. Ctrl-C ends.")
        if open_it:
            webbrowser.open(url)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            err.print("no longer served")
