"""`cdn-tune cluster init`: the files with which a cluster is started, written for this installation."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from cdn_tune import __version__
from cdn_tune.cli.app import cluster_app
from cdn_tune.cli.show.output import print_line, print_note, warn
from cdn_tune.resources import DOCS

_PAGES = {"slurm": "slurm", "kubernetes": "kubernetes", "on-premise": "workstation"}  # other kinds: cloud


@cluster_app.command(epilog="Example: cdn-tune cluster init slurm cluster")
def init(
    kind: Annotated[
        str, Argument(metavar="KIND", help="slurm, kubernetes, aws, gcp, azure, on-premise.", show_default=False)
    ],
    folder: Annotated[Path, Argument(metavar="DIR", help="Folder to write to, made if it is not there.")],
    wheel: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Wheel of cdn-tune that machines and images install; it is copied to DIR.",
            show_default=f"the one installed here; cdn-tune=={__version__} of the package index if that has gone",
        ),
    ] = None,
) -> None:
    """Write the files that start a cluster: commented, with this installation's versions, never over a file.

    What only you can know reads REPLACE_... in them; it is listed. With `cluster` for DIR, the commands of the
    documentation work as they stand there.
    """
    from cdn_tune.distributed.cluster_files import blanks, cluster_files, installed_wheel, is_from_index, write_new

    if wheel is None and kind != "slurm":
        wheel = installed_wheel()
    files = cluster_files(kind, folder, wheel)
    written = write_new(files)
    for path in files:
        print_line(f"{path}" + ("" if path in written else "  (there already, the same)"))
    if kind != "slurm":
        print_note(f"its machines install {wheel.name if wheel else f'cdn-tune=={__version__} from the package index'}")
        if wheel is None and not is_from_index():
            warn("this cdn-tune was not installed from there; --wheel FILE has them install one that you have built")
    for path, names in blanks(files).items():
        print_note(f"fill in {', '.join(names)} in {path}")
    print_note(f"how to go on: {DOCS / 'how-to' / _PAGES.get(kind, 'cloud')}.md")
