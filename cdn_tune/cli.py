"""The commands: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cdn_tune import __version__

app = typer.Typer(
    help="Hyperparameter search for CDN video moment retrieval, on a laptop or on a Ray cluster.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look after data: plant a synthetic dataset.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Dotted keys of the experiment, e.g. optim.lr=3e-4 model.map.layers=4"
    ),
]
RunOption = Annotated[
    Path | None, typer.Option("--run", metavar="DIR", help="Run folder.", show_default="runs/<name>", dir_okay=True)
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"cdn-tune {__version__}")
        raise typer.Exit


@app.command(epilog="Example: cdn-tune train experiments/charades/CDN-16x16-K5L8-pool.yaml data.root=/data/charades")
def train(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Experiment YAML, or a shipped one's path.")],
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(min=1, help="Training workers; above 1 they are a Ray Train group.")] = 1,
    run: RunOption = None,
    address: Annotated[str | None, typer.Option(metavar="ADDR", help="Ray cluster to join: auto or HOST:PORT.")] = None,
) -> None:
    """Train one trial. The same command again goes on where it stopped."""
    from cdn_tune.console.commands import run_train

    run_train(experiment, overrides or [], workers, run, address)


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


@app.command(epilog="Example: cdn-tune demo --run runs/demo")
def demo(
    run: RunOption = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all.", show_default="as the space says")] = None,
) -> None:
    """See it all once: plant a dataset, search, evaluate. A few minutes on a laptop."""
    from cdn_tune.console.commands import run_demo

    run_demo(run or Path("runs/demo"), trials)


@data_app.command(epilog="Example: cdn-tune data plant data/planted --annotations generated --videos 300")
def plant(
    out: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write; must be new, empty, or the same planting.")
    ],
    annotations: Annotated[
        str, typer.Option(help="generated (our own sentences), charades_sta or tacos (real ones from --source).")
    ] = "generated",
    source: Annotated[Path | None, typer.Option(help="Folder with the real annotation files.", metavar="DIR")] = None,
    videos: Annotated[
        int | None, typer.Option(min=3, help="Videos over all splits.", show_default="300, or all of the real ones")
    ] = None,
    feature_size: Annotated[int, typer.Option(min=1, help="Size of a frame feature.")] = 64,
    frame_rate: Annotated[float, typer.Option(min=0.01, help="Frame features per second.")] = 4.0,
    snr: Annotated[float, typer.Option(min=0.0, help="Signal-to-noise ratio of a moment's frames.")] = 1.0,
    word_size: Annotated[int, typer.Option(min=1, help="Size of a word vector.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed; the same options give the same bytes.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another planting in DIR.")] = False,
) -> None:
    """Write a planted dataset: synthetic features in which every moment can be found, in the real files' layout."""
    from cdn_tune.console.commands import run_plant

    run_plant(
        out,
        annotations=annotations,
        source=source,
        videos=videos,
        feature_size=feature_size,
        frame_rate=frame_rate,
        snr=snr,
        word_size=word_size,
        seed=seed,
        overwrite=overwrite,
    )


def main() -> None:
    """The entry point."""
    app()
