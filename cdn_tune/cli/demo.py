"""`cdn-tune demo`: everything once, on planted data; or from pixels, on drawn videos."""

from pathlib import Path
from typing import Annotated

from rich.markup import escape
from typer import Option

from cdn_tune.cli.app import app
from cdn_tune.cli.options import RunOption, refuse_url
from cdn_tune.cli.show.output import out, print_note, terminable, warn
from cdn_tune.cli.show.progress import counted
from cdn_tune.errors import ConfigError

_SPACE, _DRAWN_SPACE = "quick.yaml", "drawn.yaml"
_BACKBONE, _FPS = "efficientnet_lite0", 2.0


@app.command(epilog="Example: cdn-tune demo --run runs/demo")
def demo(
    run: RunOption = None,
    trials: Annotated[int | None, Option(min=1, help="Trials in all.", show_default="as the space says")] = None,
    video: Annotated[
        bool, Option("--video", help="From pixels: draw videos and extract features first. Some 7 minutes.")
    ] = False,
    videos: Annotated[int | None, Option(min=3, help="Videos that --video draws.", show_default="150")] = None,
) -> None:
    """See it all once: plant a dataset, search, evaluate. A few minutes on a laptop."""
    from cdn_tune.cli.evaluate import print_evaluation
    from cdn_tune.cli.report import write_report
    from cdn_tune.cli.search.start import run_search
    from cdn_tune.config import load_space
    from cdn_tune.report.page import REPORT

    if videos is not None and not video:
        raise ConfigError("--videos N is how many videos --video draws; add --video, or drop --videos")
    run = run or Path("runs/demo-video" if video else "runs/demo")
    refuse_url(run, "--run")
    with terminable():
        data = run.parent / f"{run.name}-data"
        folder = None
        if video:
            folder = _draw(data, videos)
        else:
            _plant(data)
        made, steps = (2, 5) if video else (1, 4)
        print_note(f"{made + 1}/{steps} searching")
        space, experiment = load_space(_DRAWN_SPACE if video else _SPACE, {"data.root": str(data)})
        run_search(space, experiment, run, trials=trials)
        print_note(f"{made + 2}/{steps} evaluating the winner on the test split")
        print_evaluation(run)
        print_note(f"{made + 3}/{steps} building the report")
        write_report(run, videos=folder)
        for name, what in (
            (str(REPORT), "all of it as one page: open it in a browser"),
            ("leaderboard.csv", "every trial: parameters, state, val metrics, cost"),
            ("best/", "the kept checkpoints, each with the experiment that rebuilds its model"),
            ("evaluation.json", "the winner on the test split"),
            ("predictions.jsonl", "what it retrieved for each query"),
            ("study.journal", "the Optuna study"),
            ("trials/", "each trial's metrics.jsonl and TensorBoard events"),
        ):
            out.print(f"  {escape(str(run / name))}  [dim]{what}[/dim]", soft_wrap=True)


def _plant(data: Path) -> None:
    from cdn_tune.data.planted import plant

    print_note(f"1/4 planting a dataset in {data}")
    with counted("planting") as progress:
        plant(data, progress=progress)


def _draw(data: Path, videos: int | None) -> Path:
    """Draws videos and extracts their features; returns the folder of the videos."""
    from cdn_tune.data.drawn import draw
    from cdn_tune.data.drawn.draw import VIDEOS
    from cdn_tune.data.videos.decode import find_videos
    from cdn_tune.data.videos.extract import extract

    print_note(f"1/5 drawing videos in {data}")
    with counted("drawing") as progress:
        drawn = draw(data, VIDEOS if videos is None else videos, progress=progress)
    print_note(f"2/5 extracting their features with {_BACKBONE}")
    with counted("extracting") as progress:
        extracted = extract(find_videos([str(drawn.folder)]), drawn.features, _BACKBONE, fps=_FPS, progress=progress)
    for reason in extracted.failed:
        warn(reason)
    return drawn.folder
