"""`cdn-tune compare`: two evaluated runs, and whether their difference is more than chance."""

from pathlib import Path
from typing import Annotated

from typer import Argument

from cdn_tune.cli.app import app
from cdn_tune.cli.options import Json, local_run
from cdn_tune.cli.show.output import err, out, print_json, print_line, warn


@app.command(epilog="Example: cdn-tune compare runs/pool runs/conv")
def compare(
    first: Annotated[Path, Argument(metavar="RUN_A", help="An evaluated run.")],
    second: Annotated[Path, Argument(metavar="RUN_B", help="Another, evaluated on the same queries.")],
    json: Json = False,
) -> None:
    """Print by how much one run is better than another on the test split, with intervals and p-values.

    Compares what evaluate has written; the test split is not opened again.
    """
    from cdn_tune.cli.show.evaluation import comparison_table, print_planted
    from cdn_tune.evaluation.compare import compare_runs

    with err.status("resampling"):
        result = compare_runs(local_run(first, models=True), local_run(second, models=True))
    if json:
        print_json(result)
        return
    out.print(comparison_table(result))
    for name, side in (("A", result["first"]), ("B", result["second"])):
        print_line(f"{name}: {side['run']}, {side['reported']}")
        if side["looks"] > 1:
            warn(f"{name}: its test split was opened {side['looks']} times")
    print_line(
        "A - B: mean difference over queries; interval: bootstrap by video; p: sign-flip test by video, "
        f"{result['resamples']} draws, one test per metric"
    )
    print_planted(result)
