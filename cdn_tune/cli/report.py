"""`cdn-tune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cdn_tune.cli.app import app


@app.command(epilog="Example: cdn-tune report runs/charades-quick --open")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a train or search run.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write.", show_default="RUN/report/index.html")
    ] = None,
    views: Annotated[
        int, typer.Option(min=0, help="Queries shown with score map and frame attention; 0: leave the model alone.")
    ] = 60,
    serve: Annotated[bool, typer.Option("--serve", help="Serve it to this machine, kept live; Ctrl-C ends.")] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of --serve; 0: any free one.", show_default="8080")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write everything the run recorded as one HTML page that needs no network: to open, to keep, to send around."""
    from cdn_tune.cli.show.report import run_report

    run_report(run, out, views, serve=serve, port=port, open_it=open_)
