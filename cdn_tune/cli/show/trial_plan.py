"""A trial's plan as tables."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cdn_tune.cli.show.tables import experiment_line
from cdn_tune.cli.show.text import duration_text, size_text
from cdn_tune.config import Experiment
from cdn_tune.training.plan import Plan


def plan_table(plan: Plan, experiment: Experiment) -> Group:
    """Returns a plan as a heading and four short tables: model, data, memory and disk, time."""
    return Group(
        Text(f"{experiment.name}: {experiment_line(experiment)}", style="bold"),
        rows_table(_model(plan) + _data(plan, experiment)),
        rows_table(_memory(plan), "memory and disk"),
        rows_table(_time(plan, experiment), "time"),
    )


def rows_table(rows: Iterable[tuple[str, str, str]], title: str | None = None) -> Table:
    """Returns (name, value, remark) rows as a table without heads."""
    table = Table(title=title, box=box.SIMPLE, show_header=False, pad_edge=False, title_justify="left")
    table.add_column(min_width=16, overflow="fold")
    table.add_column(justify="right", min_width=12, style="bold", overflow="fold")
    table.add_column(style="dim", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


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
