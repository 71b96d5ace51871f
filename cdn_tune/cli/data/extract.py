"""`cdn-tune data extract`: videos as the HDF5 file of features that training reads."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from cdn_tune.cli.app import data_app
from cdn_tune.cli.show.output import print_line, print_note, terminable
from cdn_tune.cli.show.progress import counted
from cdn_tune.errors import DataError


@data_app.command(
    epilog="Example: cdn-tune data extract raw/videos data/mine/features.hdf5 --backbone efficientnet_lite0"
)
def extract(
    videos: Annotated[
        list[str],
        Argument(
            metavar="VIDEOS...",
            help="Files, folders, patterns, .txt lists of videos, or URLs of files in an object store.",
        ),
    ],
    out: Annotated[Path, Argument(metavar="OUT", help="HDF5 file to write, or to add videos to.")],
    backbone: Annotated[
        str,
        Option(
            metavar="NAME", help="efficientnet_lite0, timm/MODEL (images) or torchvision/MODEL (windows of frames)."
        ),
    ],
    weights: Annotated[
        Path | None,
        Option(metavar="FILE", help="Its weights, .safetensors or .pth.", show_default="those of the library"),
    ] = None,
    fps: Annotated[float, Option(metavar="F", help="Rows of features a second.")] = 2.0,
    window: Annotated[
        int | None,
        Option(min=1, metavar="T", help="Frames that a row is computed from.", show_default="as it was trained"),
    ] = None,
    device: Annotated[
        str | None,
        Option(metavar="NAME", help="cpu, cuda (all GPUs) or cuda:0.", show_default="the GPUs, if there are any"),
    ] = None,
    workers: Annotated[int | None, Option(min=1, help="Processes.", show_default="CPU cores, or GPUs")] = None,
) -> None:
    """Write the features of videos. What OUT has already stays; the same command again goes on where it stopped.

    Videos that cannot be used are listed at the end; exit code 2 if there are any, and the rest is written.
    """
    from cdn_tune.data.videos.decode import find_videos
    from cdn_tune.data.videos.extract import extract as write_features

    missing: list[str] = []
    found = find_videos(videos, missing)
    with terminable("the same command goes on with what is left"), counted("extracting") as progress:
        result = write_features(
            found,
            out,
            backbone,
            weights=weights,
            fps=fps,
            window=window,
            device=device,
            workers=workers,
            progress=progress,
        )
    failed = [*missing, *result.failed]
    for reason in failed:
        print_note(f"left out: {reason}", "red")
    if result.videos:
        print_line(
            f"{result.path}: {result.videos} videos, size {result.size}, {result.computed} of them computed now, "
            f"{result.held} there already"
        )
        print_line(f"made by {result.making}")
        print_line(f"train with: data.feature_size={result.size}")
    if failed:
        print_note(f"error: {len(failed)} of {len(found) + len(missing)} videos have no features", "red")
        raise Exit(DataError.exit_code)
