"""Tables of results."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from cdn_tune.config import Experiment


def number(value: Any, digits: int = 4) -> str:
    """Returns a cell's text: numbers short, booleans and words as they are."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.{digits}f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.2e}"


def leaderboard_table(
    rows: list[dict[str, Any]], parameters: list[str], metric: str, limit: int | None = None
) -> Table:
    """Returns the leaderboard as a table.

    Args:
        rows: As :func:`cdn_tune.tuning.leaderboard.leaderboard` gives them.
        parameters: Dotted keys to show.
        metric: Name of the val metric that ranks.
        limit: Rows shown; all if None.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("rank", "trial", "state", f"val {metric}", "epochs", "seconds"):
        table.add_column(head, justify="left" if head == "state" else "right", no_wrap=True)
    table.add_column("parameters, or why it failed", overflow="fold")
    for row in rows[:limit]:
        style = {"failed": "red", "running": "cyan", "pruned": "dim"}.get(row["state"], "")
        cells = [
            row["rank"],
            row["trial"],
            row["state"],
            number(row["value"]),
            row["epochs"],
            number(row["seconds"], 1),
        ]
        about = row["reason"] if row["state"] == "failed" else parameters_line(row, parameters)
        table.add_row(*map(str, cells), escape(about), style="bold green" if row["rank"] == 1 else style)
    return table


def parameters_line(row: dict[str, Any], parameters: list[str]) -> str:
    """Returns a row's sampled values in one line, ``layers=3 lr=2.0e-03``."""
    short = _short_names(parameters)
    return " ".join(f"{short[key]}={number(row[key])}" for key in parameters if row[key] != "")


def experiment_line(experiment: Experiment) -> str:
    """Returns an experiment in one line."""
    model, stack = experiment.model, experiment.model.map
    sizes = "/".join(map(str, dict.fromkeys(stack.kernel_sizes)))
    return (
        f"{model.proposals} proposals, {model.clips} clips, hidden {model.hidden}, {stack.layers} layers "
        f"({stack.dynamic_layers} dynamic), kernel {sizes}, "
        f"batch {experiment.train.batch_size}, lr {experiment.optim.lr:g}"
    )


def _short_names(keys: list[str]) -> dict[str, str]:
    """Returns each key's last part, or the whole key where two end alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}
