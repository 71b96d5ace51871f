"""`cdn-tune data draw`: videos of drawn scenes, in which every moment is known."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from cdn_tune.cli.app import data_app
from cdn_tune.cli.show.output import print_line, terminable
from cdn_tune.cli.show.progress import counted


@data_app.command(epilog="Example: cdn-tune data draw data/drawn --videos 150")
def draw(
    out: Annotated[
        Path, Argument(metavar="DIR", help="Folder to write; must be new, empty, or the same drawing.")
    ] = Path("data/drawn"),
    videos: Annotated[int, Option(min=3, help="Videos over all splits.")] = 150,
    seed: Annotated[int, Option(min=0, help="Seed; the same options give the same frames and sentences.")] = 0,
) -> None:
    """Write mp4s of drawn scenes with sentences about them; features remain to be extracted. Needs extra `video`."""
    from cdn_tune.data.drawn import draw as write_videos

    with terminable("the same command goes on with what is left"), counted("drawing") as progress:
        drawn = write_videos(out, videos, seed, progress)
    print_line(f"drawn videos in {drawn.folder}: {drawn.videos} videos, {drawn.queries} sentences")
