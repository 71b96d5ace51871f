"""`cdn-tune evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cdn_tune.cli.app import Overrides, app


@app.command(epilog="Example: cdn-tune evaluate runs/charades-quick")
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a train or search run.")],
    overrides: Overrides = None,
) -> None:
    """Measure the run's best checkpoint on the test split; writes RUN/evaluation.json.

    Overrides may name where the data are now (data.root=DIR); how often the test split was opened is counted.
    """
    from cdn_tune.console.commands import run_evaluate

    run_evaluate(run, overrides or [])
