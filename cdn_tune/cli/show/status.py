"""`cdn-tune search status`: how a search stands, also from another terminal while it runs."""

from __future__ import annotations

import json
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from cdn_tune.cli.show.output import one_line_errors, out
from cdn_tune.cli.show.plan import duration_text
from cdn_tune.cli.show.tables import ENTRIES, KINDS, STATE_ORDER, number, parameters_line
from cdn_tune.tuning.results.leaderboard import objective_column
from cdn_tune.tuning.results.status import Status, best_per_objective, status_of

UNKNOWN = "--"


def run_status(run: Path, as_json: bool = False, storage: str | None = None) -> None:
    """`cdn-tune search status RUN`."""
    with one_line_errors():
        status = status_of(run, storage)
        if as_json:
            out.file.write(json.dumps(status.plain(), indent=2, ensure_ascii=False) + "\n")
            return
        out.print(status_table(status))
        if status.running:
            out.print(running_table(status))


def status_table(status: Status) -> Table:
    """Returns a search's status as a table of facts."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for head, text in _facts(status):
        table.add_row(head, escape(text))
    return table


def running_table(status: Status) -> Table:
    """Returns the trials on record as running."""
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
            UNKNOWN if silent is None else f"{duration_text(max(silent, 1.0))} ago",
            escape(trial.node),
            escape(parameters_line(trial.parameters, list(trial.parameters))),
        )
    return table


def _facts(status: Status) -> list[tuple[str, str]]:
    asked = "" if status.asked is None else f" of {status.asked}"
    states = [f"{status.counts[state]} {state}" for state in STATE_ORDER if state in status.counts]
    beside = [
        f"{status.counts[role]} {one if status.counts[role] == 1 else many}"
        for role, (one, many) in ENTRIES.items()
        if role in status.counts
    ]
    planted = " (planted data)" if status.planted else ""
    facts = [
        ("search", f"{status.name} in {status.run}{planted}"),
        ("state", _state(status)),
        ("trials", f"{status.ended}{asked} ended: {', '.join(states) or 'none yet'}"),
    ]
    if beside:
        facts.append(("besides", ", ".join(beside)))
    if status.failures:
        kinds = [f"{count} {KINDS.get(kind, kind)}" for kind, count in status.failures.items()]
        facts.append(("failures", ", ".join(kinds)))
    facts += [("nodes", line) for line in status.unfit_nodes]
    facts += _best(status)
    elapsed, rate, speed, eta = (
        status.elapsed_seconds,
        status.trials_per_hour,
        status.samples_per_second,
        status.eta_seconds,
    )
    facts += [
        ("searched", UNKNOWN if elapsed is None else duration_text(max(elapsed, 1.0))),
        ("throughput", f"{_or_unknown(rate)} trials/h, {_or_unknown(speed)} queries/s"),
        ("GPU-hours", f"{status.gpu_hours:.3g}"),
        ("ETA", UNKNOWN if eta is None else duration_text(max(eta, 1.0))),
    ]
    return facts


def _state(status: Status) -> str:
    if status.is_alive:
        return "running, asked to stop" if status.stop_asked else "running"
    if status.asked is not None and status.ended >= status.asked and not status.running:
        return "finished"
    waits = f"; {len(status.running)} unfinished trials are then taken up again" if status.running else ""
    return f"not running; the same command goes on{waits}"


def _best(status: Status) -> list[tuple[str, str]]:
    if status.best is None:
        return [("best", UNKNOWN)]
    keys = status.parameters
    if len(status.objectives) > 1:
        facts = [("Pareto front", f"{len(status.front)} trials")]
        for name, row in best_per_objective(status.front, status.objectives).items():
            value = number(row[objective_column(name)])
            facts.append((f"best {name}", f"{value}, trial {row['trial']}: {parameters_line(row, keys)}"))
        return facts
    best = status.best
    found = f"val {status.metric} {number(best['value'])}, trial {best['trial']}, epoch {best['best_epoch']}"
    return [("best", f"{found}: {parameters_line(best, keys)}")]


def _or_unknown(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3g}"
