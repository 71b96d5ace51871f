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
    source: Annotated[Path, Argument(metavar="SOURCE", help="Folder of the raw features, or an HDF5 file.")],
    out: Annotated[Path, Argument(metavar="OUT", help="HDF5 file to write; must not exist.")],
    form: Annotated[
        str,
        Option(
            help="charades_vgg: a folder per video of text files; tacos_c3d: VIDEO_FIRST_LAST.npy; "
            "arrays: VIDEO.npy, .npz or .pt; hdf5: an HDF5 file whose arrays or names are to be changed."
        ),
    ],
    feature_size: Annotated[
        int | None, Option(min=1, metavar="D", help="Size of a frame feature; arrays stored as [D, rows] are turned.")
    ] = None,
    names_of: Annotated[
        Path | None,
        Option(
            metavar="ROOT",
            help="Data folder; videos get its annotations' names, where only case or a suffix such as .avi differs.",
        ),
    ] = None,
    workers: Annotated[int | None, Option(min=1, help="Reading processes.", show_default="CPU cores")] = None,
) -> None:
    """Write features as the HDF5 file that training reads. The same command again goes on where it stopped."""
    from cdn_tune.data.convert import convert as write_features

    with counted("reading") as progress:
        result = write_features(source, out, form, workers, progress, feature_size=feature_size, names_of=names_of)
    resumed = f", {result.resumed} of them read before" if result.resumed else ""
    print_line(f"{result.path}: {result.videos} videos, size {result.size}, verified{resumed}")
