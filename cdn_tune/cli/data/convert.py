"""`cdn-tune data convert`: raw features as one HDF5 file."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from cdn_tune.cli.app import data_app
from cdn_tune.cli.show.output import print_line
from cdn_tune.cli.show.progress import counted


@data_app.command(
    epilog="Example: cdn-tune data convert raw/vgg data/charades/vgg_rgb_features.hdf5 --form charades_vgg"
)
def convert(
    source: Annotated[Path, Argument(metavar="SOURCE", help="Folder of the raw features.")],
    out: Annotated[Path, Argument(metavar="OUT", help="HDF5 file to write; must not exist.")],
    form: Annotated[
        str,
        Option(
            help="charades_vgg: a folder per video of text files; tacos_c3d: VIDEO_FIRST_LAST.npy; "
            "arrays: VIDEO.npy, .npz or .pt."
        ),
    ],
    workers: Annotated[int | None, Option(min=1, help="Reading processes.", show_default="CPU cores")] = None,
) -> None:
    """Write raw features as the HDF5 file that training reads. The same command again goes on where it stopped."""
    from cdn_tune.data.convert import convert as write_features

    with counted("reading") as progress:
        result = write_features(source, out, form, workers, progress)
    resumed = f", {result.resumed} of them read before" if result.resumed else ""
    print_line(f"{result.path}: {result.videos} videos, size {result.size}, verified{resumed}")
