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
data_app = typer.Typer(
    help="Look after data: examine a folder, convert features, plant a synthetic dataset.", no_args_is_help=True
)
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
    plan: Annotated[
        bool, typer.Option("--plan", help="Print parameters, memory, steps and time, told from a few steps, and stop.")
    ] = False,
) -> None:
    """Train one trial. The same command again goes on where it stopped.

    Ctrl-C once ends it after the step under way, with a checkpoint; twice at once.
    """
    from cdn_tune.console.commands import run_plan, run_train

    if plan:
        run_plan(experiment, overrides or [])
    else:
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
    from cdn_tune.console.commands import run_import_weights

    run_import_weights(file, experiment, overrides or [], out)


@app.command(epilog="Example: cdn-tune demo --run runs/demo")
def demo(
    run: RunOption = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all.", show_default="as the space says")] = None,
) -> None:
    """See it all once: plant a dataset, search, evaluate. A few minutes on a laptop."""
    from cdn_tune.console.commands import run_demo

    run_demo(run or Path("runs/demo"), trials)


@data_app.command(epilog="Example: cdn-tune data doctor data/charades --quick")
def doctor(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder with annotations, features, word vectors.")],
    quick: Annotated[bool, typer.Option("--quick", help="Read the features of a sample of the videos.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Layout.", metavar="NAME", show_default="as recognised")] = None,
    features: Annotated[str | None, typer.Option(help="Feature file, if elsewhere.", metavar="FILE")] = None,
    word_vectors: Annotated[str | None, typer.Option(help="Word vectors, if elsewhere.", metavar="FILE")] = None,
) -> None:
    """Examine a data folder: what is in it, what is wrong, and the remedy. Exit code 2 if training would fail."""
    from cdn_tune.console.data_commands import run_doctor

    run_doctor(root, json_file, quick=quick, dataset=dataset, features=features, word_vectors=word_vectors)


@data_app.command(
    epilog="Example: cdn-tune data convert raw/vgg data/charades/vgg_rgb_features.hdf5 --form charades_vgg"
)
def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder of the raw features.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="HDF5 file to write; must not exist.")],
    form: Annotated[
        str,
        typer.Option(
            help="charades_vgg: a folder per video of text files; tacos_c3d: VIDEO_FIRST_LAST.npy; "
            "arrays: VIDEO.npy, .npz or .pt."
        ),
    ],
    workers: Annotated[int | None, typer.Option(min=1, help="Reading processes.", show_default="CPU cores")] = None,
) -> None:
    """Write raw features as the HDF5 file that training reads. The same command again goes on where it stopped."""
    from cdn_tune.console.data_commands import run_convert

    run_convert(source, out, form, workers)


@data_app.command(epilog="Example: cdn-tune data plant data/planted --annotations generated --videos 300")
def plant(
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="Folder to write; must be new, empty, or the same planting.",
            show_default="data/planted, or data/ANNOTATIONS-planted",
        ),
    ] = None,
    annotations: Annotated[
        str,
        typer.Option(
            help="generated (our own sentences), or the real ones in --source: charades_sta, tacos, activitynet, jsonl."
        ),
    ] = "generated",
    source: Annotated[Path | None, typer.Option(help="Folder with the real annotation files.", metavar="DIR")] = None,
    videos: Annotated[
        int | None, typer.Option(min=3, help="Videos over all splits.", show_default="300, or all of the real ones")
    ] = None,
    feature_size: Annotated[int, typer.Option(min=1, help="Size of a frame feature.")] = 64,
    frame_rate: Annotated[float, typer.Option(min=0.01, help="Frame features per second.")] = 4.0,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="Difficulty by name: planted-medium.")] = None,
    snr: Annotated[
        float | None, typer.Option(min=0.0, help="Signal-to-noise ratio of a moment's frames.", show_default="1")
    ] = None,
    distractors: Annotated[
        int | None, typer.Option(min=0, help="Moments per video that nobody asks for.", show_default="0")
    ] = None,
    paraphrases: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of words planted as synonyms.", show_default="0")
    ] = None,
    jitter: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Error of annotated ends, share of a moment's length.", show_default="0"),
    ] = None,
    word_size: Annotated[int, typer.Option(min=1, help="Size of a word vector.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed; the same options give the same bytes.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another planting in DIR.")] = False,
) -> None:
    """Write a planted dataset: synthetic features in which every moment can be found, in the real files' layout."""
    from cdn_tune.console.data_commands import run_plant

    run_plant(
        out or Path("data") / ("planted" if annotations == "generated" else f"{annotations}-planted"),
        annotations=annotations,
        source=source,
        videos=videos,
        feature_size=feature_size,
        frame_rate=frame_rate,
        preset_name=preset,
        difficulty={"snr": snr, "distractors": distractors, "paraphrases": paraphrases, "jitter": jitter},
        word_size=word_size,
        seed=seed,
        overwrite=overwrite,
    )


def main() -> None:
    """The entry point."""
    app()
