"""What a trial has reached and what it took, as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from cdn_tune.cli.show.plan import duration_text, size_text
from cdn_tune.config import Experiment
from cdn_tune.training.memory.size import occupied_bytes


def trained_table(experiment: Experiment, epochs: Sequence[dict[str, Any]], run: Path, planted: bool) -> Table:
    """Returns the best epoch's val metrics in %, and the trial's time, memory and disk use.

    Args:
        experiment: The trial.
        epochs: Its epochs as recorded, one at least (see `EpochReport`).
        run: Its folder.
        planted: Whether its data are planted.
    """
    last = epochs[-1]
    best = epochs[last["best_epoch"] - 1]
    label = "planted data" if planted else "real data"
    title = f"{experiment.data.dataset} ({label}), val split, epoch {best['epoch']} of {last['epoch']}, in %"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("")
    for name in best["val"]:
        table.add_column(name, justify="right", style="bold green" if name == experiment.eval.metric else "")
    for head in ("time", "peak memory", "checkpoints on disk"):
        table.add_column(head, justify="right", style="dim")
    seconds = sum(epoch["train_seconds"] + epoch["val_seconds"] for epoch in epochs)
    table.add_row(
        "CDN, best on val",
        *(f"{100 * value:.2f}" for value in best["val"].values()),
        duration_text(seconds),
        size_text(last["peak_bytes"]) if last.get("peak_bytes") else "",
        size_text(occupied_bytes(run)),
    )
    return table
