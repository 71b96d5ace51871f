"""`cdn-tune search status`: how a search stands, also from another terminal while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from cdn_tune.cli.app import search_app
from cdn_tune.cli.options import Json, SearchRun, Storage
from cdn_tune.cli.show.output import UNKNOWN, facts_table, out, print_json, warn
from cdn_tune.data.mark import marked

if TYPE_CHECKING:
    from cdn_tune.tuning.results.status import Status


@search_app.command(epilog="Example: cdn-tune search status runs/charades-quick")
def status(run: SearchRun, json: Json = False, storage: Storage = None) -> None:
    """Show how a search stands, while it runs (from another terminal) or after."""
    from cdn_tune.tuning.results.status import status_of

    found = status_of(run, storage)
    if found.notice is not None:
        warn(found.notice)
    if json:
        print_json(found.plain())
        return
    out.print(facts_table(_facts(found)))
    if found.running:
        out.print(_running_table(found))


def _running_table(status: Status) -> Table:
    """Returns the trials on record as running."""
    from cdn_tune.cli.show.tables import number, parameters_line, rough

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("trial", "epoch", f"val {status.metric}", "last report"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("node", no_wrap=True)
    table.add_column("parameters", overflow="fold")
    for trial in status.running:
        silent = trial.silent_seconds
        table.add_row(
            str(trial.trial),
            f"{trial.epoch}/{trial.epochs}" if trial.epochs else str(trial.epoch),
            UNKNOWN if trial.value is None else number(trial.value),
            UNKNOWN if silent is None else f"{rough(silent)} ago",
            escape(trial.node),
            escape(parameters_line(trial.parameters, list(trial.parameters))),
        )
    return table


def _facts(status: Status) -> list[tuple[str, str]]:
    from cdn_tune.cli.show.tables import STATE_ORDER, entries_text, rough
    from cdn_tune.tuning.results.leaderboard import UNFINISHED
    from cdn_tune.tuning.study.failures import MEANING

    asked = "" if status.asked is None else f" of {status.asked}"
    shown = {"running": "running" if status.is_alive else UNFINISHED}
    states = [f"{status.counts[state]} {shown.get(state, state)}" for state in STATE_ORDER if state in status.counts]
    planted = f" ({marked(status.planted)})" if status.planted else ""
    failures = (f"{count} {MEANING.get(kind, kind)}" for kind, count in status.failures.items())
    rates = (status.trials_per_hour, status.samples_per_second)
    units = zip(rates, ("trials/h", "queries/s"), strict=True)
    facts = [
        ("search", f"{status.name} in {status.run}{planted}"),
        ("state", _state(status)),
        ("trials", f"{status.ended}{asked} ended: {', '.join(states) or 'none yet'}"),
        ("besides", entries_text(status.counts)),
        ("failures", ", ".join(failures)),
        *(("nodes", line) for line in status.unfit_nodes),
        *_best(status),
        ("searched", rough(status.elapsed_seconds)),
        ("throughput", ", ".join(f"{value:.3g} {unit}" for value, unit in units if value is not None)),
        ("GPU-hours", f"{status.gpu_hours:.3g}" if status.gpu_hours else ""),
        ("ETA", rough(status.eta_seconds) if status.is_alive else ""),
    ]
    return [(name, text) for name, text in facts if text]


def _state(status: Status) -> str:
    if status.is_alive:
        return "running, asked to stop" if status.stop_asked else "running"
    if status.is_finished:
        return "finished"
    waits = f"; {len(status.running)} unfinished trials are then taken up again" if status.running else ""
    return f"not running; the same command goes on{waits}"


def _best(status: Status) -> list[tuple[str, str]]:
    from cdn_tune.cli.show.tables import mean_text, number, parameters_line
    from cdn_tune.tuning.results.leaderboard import objective_column
    from cdn_tune.tuning.results.status import best_per_objective

    keys = status.parameters
    ahead = next((trial for trial in status.running if trial.trial == status.ahead), None)
    leading: list[tuple[str, str]] = []
    if ahead is not None and ahead.value is not None:
        reached = f"val {status.metric} {number(ahead.value)}, trial {ahead.trial}, running, epoch {ahead.epoch}"
        leading = [("ahead", f"{reached}: {parameters_line(ahead.parameters, list(ahead.parameters))}")]
    if status.best is None:
        return [("best", UNKNOWN), *leading]
    if len(status.objectives) > 1:
        facts = [("Pareto front", f"{len(status.front)} trials")]
        for name, row in best_per_objective(status.front, status.objectives).items():
            value = number(row[objective_column(name)])
            facts.append((f"best {name}", f"{value}, trial {row['trial']}: {parameters_line(row, keys)}"))
        return facts
    best = status.best
    found = f"val {status.metric} {number(best['value'])}, trial {best['trial']}, epoch {best['best_epoch']}"
    return [("best", f"{found}{mean_text(best)}: {parameters_line(best, keys)}"), *leading]
