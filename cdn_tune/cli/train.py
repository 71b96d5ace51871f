"""`cdn-tune train`, `import-weights`, `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cdn_tune.cli.app import AddressOption, Overrides, RunOption, app


@app.command(epilog="Example: cdn-tune train experiments/charades/CDN-16x16-K5L8-pool.yaml data.root=/data/charades")
def train(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Experiment YAML, or a shipped one's path.")],
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(min=1, help="Training workers; above 1 they are a Ray Train group.")] = 1,
    run: RunOption = None,
    address: AddressOption = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print parameters, memory, steps and time, told from a few steps, and stop.")
    ] = False,
) -> None:
    """Train one trial. The same command again goes on where it stopped.

    Ctrl-C once ends it after the step under way, with a checkpoint; twice at once.
    """
    from cdn_tune.cli.show.commands import run_plan, run_train

    if plan:
        run_plan(experiment, overrides or [])
    else:
        run_train(experiment, overrides or [], workers, run, address)


@app.command(
    name="import-weights",
    epilog="Example: cdn-tune import-weights best.pkl --experiment experiments/charades/CDN-16x16-K5L8-pool.yaml "
    "--out runs/published",
)
def import_weights(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint of the published implementation.")],
    experiment: Annotated[str, typer.Option(metavar="EXPERIMENT", help="Experiment whose model the weights are of.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Run folder to write.")],
    overrides: Overrides = None,
) -> None:
    """Make a run of weights trained with the published implementation, to evaluate or to export them.

    The file is opened without running code in it; entries that are missing, unknown or of another shape are named.
    """
    from cdn_tune.cli.show.commands import run_import_weights

    run_import_weights(file, experiment, overrides or [], out)


@app.command(epilog="Example: cdn-tune demo --run runs/demo")
def demo(
    run: RunOption = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all.", show_default="as the space says")] = None,
) -> None:
    """See it all once: plant a dataset, search, evaluate. A few minutes on a laptop."""
    from cdn_tune.cli.show.commands import run_demo

    run_demo(run or Path("runs/demo"), trials)
