"""`cdn-tune data plant`: a synthetic dataset in which every moment can be found."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from cdn_tune.cli.app import data_app
from cdn_tune.cli.show.output import print_line
from cdn_tune.cli.show.progress import counted


@data_app.command(epilog="Example: cdn-tune data plant data/planted --annotations generated --videos 300")
def plant(
    out: Annotated[
        Path | None,
        Argument(
            metavar="DIR",
            help="Folder to write; must be new, empty, or the same planting.",
            show_default="data/planted, or data/ANNOTATIONS-planted",
        ),
    ] = None,
    annotations: Annotated[
        str | None,
        Option(
            help="generated or tabletop (our own sentences; the latter of long videos), or the real ones in "
            "--source: charades_sta, tacos, activitynet, charades_cd, activitynet_cd, jsonl.",
            show_default="generated",
        ),
    ] = None,
    source: Annotated[Path | None, Option(help="Folder with the real annotation files.", metavar="DIR")] = None,
    videos: Annotated[
        int | None, Option(min=3, help="Videos over all splits.", show_default="300, 125 of tabletop, or all real ones")
    ] = None,
    feature_size: Annotated[int, Option(min=1, help="Size of a frame feature.")] = 64,
    frame_rate: Annotated[float | None, Option(min=0.01, help="Frame features per second.", show_default="4")] = None,
    preset: Annotated[str | None, Option(metavar="NAME", help="Options by name: planted-medium, planted-hard.")] = None,
    snr: Annotated[
        float | None, Option(min=0.0, help="Signal-to-noise ratio of a moment's frames.", show_default="1")
    ] = None,
    distractors: Annotated[
        int | None, Option(min=0, help="Moments per video that no query describes.", show_default="0")
    ] = None,
    paraphrases: Annotated[
        float | None, Option(min=0.0, max=1.0, help="Share of words planted as synonyms.", show_default="0")
    ] = None,
    jitter: Annotated[
        float | None,
        Option(min=0.0, max=1.0, help="Error of annotated ends, share of a moment's length.", show_default="0"),
    ] = None,
    word_size: Annotated[int, Option(min=1, help="Size of a word vector.")] = 50,
    seed: Annotated[int, Option(min=0, help="Seed; the same options give the same bytes.")] = 0,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace another planting in DIR.")] = False,
) -> None:
    """Write a planted dataset: synthetic features in which every moment can be found, in the real files' layout."""
    from cdn_tune.data.planted import plant as write_dataset
    from cdn_tune.data.planted.planting import preset as preset_of

    options: dict[str, Any] = {"annotations": "generated", "source": source, "videos": videos, "seed": seed}
    options |= {"feature_size": feature_size, "word_size": word_size, "overwrite": overwrite}
    options |= preset_of(preset) if preset else {}
    given = {"annotations": annotations, "frame_rate": frame_rate, "snr": snr, "distractors": distractors}
    given |= {"paraphrases": paraphrases, "jitter": jitter}
    options |= {name: value for name, value in given.items() if value is not None}
    kind = options["annotations"]
    folder = out or Path("data") / ("planted" if kind == "generated" else f"{kind}-planted")
    with counted("planting") as progress:
        write_dataset(folder, progress=progress, **options)
    print_line(f"planted data in {folder}")
