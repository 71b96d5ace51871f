"""`cdn-tune demo`: everything once, on planted data."""

from pathlib import Path
from typing import Annotated

from rich.markup import escape
from typer import Option

from cdn_tune.cli.app import app
from cdn_tune.cli.options import RunOption, refuse_url
from cdn_tune.cli.show.output import out, print_note, terminable
from cdn_tune.cli.show.progress import counted

_SPACE = "quick.yaml"


@app.command(epilog="Example: cdn-tune demo --run runs/demo")
def demo(
    run: RunOption = None,
    trials: Annotated[int | None, Option(min=1, help="Trials in all.", show_default="as the space says")] = None,
) -> None:
    """See it all once: plant a dataset, search, evaluate. A few minutes on a laptop."""
    from cdn_tune.cli.evaluate import print_evaluation
    from cdn_tune.cli.report import write_report
    from cdn_tune.cli.search.start import run_search
    from cdn_tune.config import load_space
    from cdn_tune.data.planted import plant
    from cdn_tune.report.page import REPORT

    run = run or Path("runs/demo")
    refuse_url(run, "--run")
    with terminable():
        data = run.parent / f"{run.name}-data"
        print_note(f"1/4 planting a dataset in {data}")
        with counted("planting") as progress:
            plant(data, progress=progress)
        print_note("2/4 searching")
        space, experiment = load_space(_SPACE, {"data.root": str(data)})
        run_search(space, experiment, run, trials=trials)
        print_note("3/4 evaluating the winner on the test split")
        print_evaluation(run)
        print_note("4/4 building the report")
        write_report(run)
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
