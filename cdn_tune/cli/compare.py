"""`cdn-tune compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cdn_tune.cli.app import app


@app.command(epilog="Example: cdn-tune compare runs/pool runs/conv")
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="An evaluated run.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another, evaluated on the same queries.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say by how much one run is better than another on the test split, with intervals and p-values.

    Compares what evaluate has written; the test split is not opened again.
    """
    from cdn_tune.cli.show.commands import run_compare

    run_compare(first, second, as_json)
