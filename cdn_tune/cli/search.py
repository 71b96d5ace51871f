"""`cdn-tune search`."""

from __future__ import annotations

from typing import Annotated

import typer

from cdn_tune.cli.app import Overrides, RunOption, app


@app.command(epilog="Example: cdn-tune search search_spaces/charades-quick.yaml data.root=/data/charades --trials 20")
def search(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="Search space YAML, or a shipped one's path.")],
    overrides: Overrides = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Trials in all, in place of the space's; raise it to go on with a finished search."),
    ] = None,
    run: RunOption = None,
    address: Annotated[str | None, typer.Option(metavar="ADDR", help="Ray cluster to join: auto or HOST:PORT.")] = None,
) -> None:
    """Search for the best configuration with Ray Tune and Optuna.

    Epochs and trials are chosen on the val split; the best checkpoints are kept under RUN/best/. The same command
    again goes on where it stopped.
    """
    from cdn_tune.console.commands import run_search

    run_search(space, overrides or [], trials, run, address)
