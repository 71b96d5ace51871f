"""`cdn-tune simulate SPACE`: what a search would find, over recorded learning curves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from typer import Argument, Option

from cdn_tune.cli.app import app
from cdn_tune.cli.options import Json, Overrides, local_run
from cdn_tune.cli.show.output import duration_text, facts_table, head_table, out, print_json, print_line, warn
from cdn_tune.data.mark import marked

_QUANTILES = {"q10": "10 %", "q50": "median", "q90": "90 %"}


@app.command(
    epilog="Example: cdn-tune simulate my-space.yaml --curves runs/my-space --slots 8 --set early_stopping.name=none"
)
def simulate(
    space: Annotated[str, Argument(metavar="SPACE", help="Search space YAML, or a shipped one's path.")],
    overrides: Overrides = None,
    curves: Annotated[
        Path | None,
        Option(
            metavar="TABLE|RUN",
            help="Table of recorded learning curves, or the run folder of a finished search.",
            show_default="runs/<name>",
        ),
    ] = None,
    slots: Annotated[int, Option(min=1, max=100_000, help="Trials that run at once.")] = 2,
    trials: Annotated[int | None, Option(min=1, help="Trials in all, in place of the space's.")] = None,
    seeds: Annotated[int, Option(min=1, max=100_000, help="Searches that are simulated, each with its seed.")] = 20,
    settings: Annotated[
        list[str] | None,
        Option("--set", metavar="KEY=VALUE", help="A key of the search space, e.g. --set sampler.name=random."),
    ] = None,
    json: Json = False,
) -> None:
    """Simulate a search in seconds: its real decisions, over learning curves that were recorded before.

    Shows what it finds by epochs, time and GPU-hours, how busy its slots are, which trials it stops, and what the model
    that it chooses is worth, with quantiles over seeds. Nothing is trained and nothing is written.
    """
    from cdn_tune.cli.show.progress import counted
    from cdn_tune.config import parse_overrides
    from cdn_tune.config.load_search import read_space, with_min_resource
    from cdn_tune.tuning.simulation.curves import read_curves
    from cdn_tune.tuning.simulation.simulate import checked, landscape_of, simulate_many, summary

    found, base = read_space(space, parse_overrides(overrides or []), parse_overrides(settings or []))
    known = read_curves(local_run(curves or Path("runs") / found.name, trials=True))
    found = with_min_resource(found, known.header.epochs)
    base, notes = checked(found, base, known)
    landscape = landscape_of(found, base, known)
    with counted("simulating") as progress:
        searches, speed = simulate_many(found, base, landscape, seeds, slots, trials, progress=progress)
    result = summary(found, base, landscape, slots, searches, speed, notes)
    if json:
        print_json(result)
        return
    out.print(facts_table(_facts(result)))
    for what, title in (("epochs", "epochs"), ("seconds", "time"), ("gpu_hours", "GPU-hours")):
        if rows := result[f"best_by_{what}"]:
            out.print(_best_table(rows, what, title, result["metric"]))
    if result["curves"]["planted"]:
        print_line(
            f"{marked(result['curves']['planted'])}: the numbers say how searches compare, nothing about real videos"
        )
    for note in result["notes"]:
        warn(note)


def _facts(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    curves, metric = result["curves"], result["metric"]
    yield "simulated", f"{result['space']}: {result['sampler']} and {result['early_stopping']}, {result['seeds']} seeds"
    kind = "predicted from a search's own trials, noise included" if curves["predicted_from_run"] else "as recorded"
    yield "curves", f"{curves['source']}, {curves['configurations']} configurations, {kind}"
    yield "", curves["about"]
    correlation = curves["rank_correlation"]
    shown = "too few configurations to tell" if correlation is None else f"{correlation:.2f}"
    yield "rank correlation", f"{shown}, of configurations left out with what is predicted for them"
    apart = curves["nearest_distance"]
    yield "nearest recorded", f"distance {apart['median']:.2f} (median), {apart['most']:.2f} at most, of 1"
    yield (
        "a search",
        f"{result['trials']:.1f} trials, {result['epochs']:.0f} epochs, {duration_text(result['seconds'])}",
    )
    yield "slots", f"{result['slots']}, busy {result['slots_busy']:.1%} of the time"
    stopped = ", ".join(f"{count:.1f} after epoch {epoch}" for epoch, count in result["stopped_after_epoch"].items())
    yield "stopped early", stopped or "no trial"
    if result["ended_by_budget"]:
        yield "budget", f"ended {result['ended_by_budget']:.0%} of the searches"
    truth = "test" if curves["has_test"] else "val free of noise"
    regret, promised = result["test_regret_quantiles"], result["val_minus_test_quantiles"]
    yield "chosen model", f"val {metric} {result['chosen_val']:.4f}, {truth} {result['chosen_test']:.4f} (means)"
    yield "", f"{truth}: {_spread(result['test_regret'], regret)} below the best recorded, {result['best_test']:.4f}"
    yield "", f"val - {truth}: {_spread(result['val_minus_test'], promised)}, the winner's curse"
    yield "speed", f"{result['reports_per_second']:,.0f} reports decided a second"


def _spread(mean: float, found: dict[str, float]) -> str:
    return f"{mean:.4f} (10 to 90 %: {found['q10']:.4f} to {found['q90']:.4f})"


def _best_table(rows: list[dict[str, float]], what: str, title: str, metric: str) -> Table:
    """Returns the best val metric so far by budget."""
    shown = {"epochs": "{:.0f}".format, "seconds": duration_text, "gpu_hours": "{:.3g}".format}[what]
    heads = (title, *(f"best val {metric}, {name}" for name in _QUANTILES.values()))
    table = head_table(*heads, right=heads, edge=True)
    for row in rows:
        table.add_row(shown(row[what]), *(f"{row[name]:.4f}" for name in _QUANTILES))
    return table
