"""`cdn-tune data`: doctor, convert, plant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cdn_tune.cli.app import data_app


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
    from cdn_tune.cli.show.data_commands import run_doctor

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
    from cdn_tune.cli.show.data_commands import run_convert

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
    from cdn_tune.cli.show.data_commands import run_plant

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
