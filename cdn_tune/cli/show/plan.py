"""A trial's plan, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdn_tune.cli.show.tables import experiment_line
from cdn_tune.config import Experiment
from cdn_tune.training.plan import Plan

_KIB = 1 << 10


def plan_table(plan: Plan, experiment: Experiment) -> Group:
    """Returns a plan as a heading and four short tables: model, data, memory and disk, time."""
    return Group(
        Text(f"{experiment.name}: {experiment_line(experiment)}", style="bold"),
        _table("", _model(plan) + _data(plan, experiment)),
        _table("memory and disk", _memory(plan)),
        _table("time", _time(plan, experiment)),
    )


def size_text(size: float) -> str:
    """Returns a number of bytes as KiB, MiB, GiB or TiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < _KIB:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
        size /= _KIB
    return f"{size:.3g} TiB"


def duration_text(seconds: float) -> str:
    """Returns a duration in its two largest units: ``2 d 3 h``, ``1 h 5 min``, ``2 min 7 s``, ``12.3 s``, ``45 ms``."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    for size, unit, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        rounded = round(seconds / part) * part
        if rounded >= size:
            rest = rounded % size // part
            return f"{rounded // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{seconds:.3g} s"


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _model(plan: Plan) -> list[tuple[str, str, str]]:
    return [
        ("parameters", f"{plan.parameters:,}", f"{plan.parameters / 1e6:.1f} million"),
        ("computes on", plan.device.replace("cuda", "GPU").replace("cpu", "CPU"), plan.dtype),
    ]


def _data(plan: Plan, experiment: Experiment) -> list[tuple[str, str, str]]:
    splits = [
        (name, _count(plan.queries[name], "query", "queries"), f"of {_count(plan.videos[name], 'video', 'videos')}")
        for name in sorted(plan.queries)
    ]
    pieces = -(-plan.batch // plan.micro_batch)
    at_once = "whole" if pieces == 1 else f"{pieces} times up to {plan.micro_batch}"
    epochs = experiment.train.epochs
    return [
        *splits,
        (
            "batch",
            _count(plan.batch, "query", "queries"),
            f"computed {at_once}" + (" at once" if pieces == 1 else " queries"),
        ),
        ("steps", f"{plan.total_steps:,}", f"{plan.steps_per_epoch:,} per epoch, {epochs:,} epochs"),
    ]


def _memory(plan: Plan) -> list[tuple[str, str, str]]:
    need = plan.memory
    model = need.weights + need.gradients + need.optimiser + need.ema + need.copies
    parts = [("weights", need.weights), ("gradients", need.gradients), ("optimiser", need.optimiser)]
    parts += [(name, size) for name, size in (("mean of weights", need.ema), ("copies", need.copies)) if size]
    each = need.activations + need.temporary
    queries = _count(plan.micro_batch, "query", "queries")
    return [
        ("model", size_text(model), ", ".join(f"{name} {size_text(size)}" for name, size in parts)),
        ("queries at once", size_text(each * plan.micro_batch), f"{queries} of {size_text(each)}"),
        ("estimated", size_text(need.total(plan.micro_batch)), f"of {size_text(plan.available_bytes)} available"),
        ("measured peak", size_text(plan.peak_bytes), "of the GPU" if plan.device == "cuda" else "of the process"),
        ("on disk", size_text(plan.checkpoint_bytes), "the best checkpoint, the last two, and one being written"),
    ]


def _time(plan: Plan, experiment: Experiment) -> list[tuple[str, str, str]]:
    rate = plan.batch / plan.seconds_per_step
    evaluated = min(experiment.train.eval_queries or plan.queries["val"], plan.queries["val"])
    return [
        ("step", duration_text(plan.seconds_per_step), f"{rate:.3g} queries/s, median of {plan.measured_steps} steps"),
        ("evaluation", duration_text(plan.val_seconds), f"{evaluated:,} val queries"),
        ("epoch", duration_text(plan.seconds_per_epoch), "steps and evaluation"),
        ("in all", duration_text(plan.seconds), f"{experiment.train.epochs:,} epochs"),
    ]


def _table(title: str, rows: Iterable[tuple[str, str, str]]) -> RenderableType:
    table = Table(title=title or None, box=box.SIMPLE, show_header=False, pad_edge=False, title_justify="left")
    table.add_column(min_width=16)
    table.add_column(justify="right", min_width=14, no_wrap=True, style="bold")
    table.add_column(style="dim")
    for row in rows:
        table.add_row(*row)
    return table
