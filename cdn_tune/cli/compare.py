"""`cdn-tune compare`: evaluated runs, and whether their differences are more than chance."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter

from cdn_tune.cli.app import app
from cdn_tune.cli.options import Json, local_run
from cdn_tune.cli.show.output import err, out, print_json, print_line, warn

_NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@app.command(
    epilog="Examples: cdn-tune compare runs/pool runs/conv; cdn-tune compare runs/pool runs/conv runs/snag runs/mmn"
)
def compare(
    runs: Annotated[list[Path], Argument(metavar="RUN", help="Evaluated runs, two or more, on the same queries.")],
    json: Json = False,
) -> None:
    """Print by how much each run is better than each other on the test split, with intervals and p-values.

    Of more than two runs, p-values are also corrected for the number of pairs (Holm).

    Compares what evaluate has written; the test split is not opened again.
    """
    from cdn_tune.cli.show.evaluation import comparison_table, pairs_table, print_planted, runs_metrics_table
    from cdn_tune.evaluation.compare import compare_many, compare_runs

    if not 2 <= len(runs) <= len(_NAMES):
        raise BadParameter(f"{len(runs)} given; name 2 to {len(_NAMES)} runs")
    with err.status("resampling"):
        folders = [local_run(run, models=True) for run in runs]
        result = compare_runs(folders[0], folders[1]) if len(folders) == 2 else compare_many(folders)
    if json:
        print_json(result)
        return
    draws = f"p: sign-flip test by video, {result['resamples']} draws, one test per metric"
    if len(folders) == 2:
        sides = [result["first"], result["second"]]
        out.print(comparison_table(result))
    else:
        sides = result["runs"]
        out.print(runs_metrics_table(result, _NAMES))
        out.print(pairs_table(result, _NAMES))
        draws += f"; p (Holm): corrected for {len(result['pairs'])} pairs, each metric for itself"
    _print_sides(sides)
    pair = "A - B" if len(folders) == 2 else "differences"
    print_line(f"{pair}: mean difference over queries; interval: bootstrap by video; {draws}")
    print_planted(result)


def _print_sides(sides: list[dict[str, Any]]) -> None:
    for name, side in zip(_NAMES, sides, strict=False):
        print_line(f"{name}: {side['run']}, {side['reported']}")
        if side["looks"] > 1:
            warn(f"{name}: its test split was opened {side['looks']} times")
