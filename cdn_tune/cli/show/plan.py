"""What a trial, or a search, will take, as tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cdn_tune.cli.show.output import duration_text, head_table, size_text
from cdn_tune.cli.show.tables import experiment_line
from cdn_tune.config import Categorical, Experiment, Parameter
from cdn_tune.config.keys import Frozen, get_key
from cdn_tune.data.splits import coarse
from cdn_tune.tuning.planning.preflight import holding

if TYPE_CHECKING:
    from cdn_tune.training.plan import Plan
    from cdn_tune.tuning.planning.plan import SearchPlan

_HOUR = 3600.0
_MANY = 10**6

Row = tuple[str, str, str]  # name, value, remark


def plan_table(plan: Plan, experiment: Experiment) -> Group:
    """Returns a trial's plan as a heading and tables: model and data, memory and disk, time."""
    return Group(
        Text(f"{experiment.name}: {experiment_line(experiment)}", style="bold"),
        _rows_table(_model_and_data(plan, experiment)),
        _rows_table(_memory(plan, experiment), "memory and disk"),
        _rows_table(_trial_time(plan, experiment), "time"),
    )


def search_plan_table(plan: SearchPlan) -> Group:
    """Returns a search's plan as a heading and tables: the space, proposals, sizes, room and time."""
    return Group(
        Text(f"{plan.space.name}: over {plan.base.name} ({experiment_line(plan.base)})", style="bold"),
        _parameters(plan),
        _rows_table(_points(plan)),
        _rows_table(_refusals(plan), "proposals that would be refused"),
        _rows_table(_sizes(plan), "sizes of those that may start: least, median, most"),
        _rows_table(_room(plan), "room"),
        _rows_table(_time(plan), "time"),
    )


def plan_plain(plan: Plan | SearchPlan) -> dict[str, Any]:
    """Returns a plan as plain values, ready for JSON."""
    return {name: _plainly(value) for name, value in vars(plan).items()}


def _plainly(value: Any) -> Any:
    if isinstance(value, Frozen):
        return value.plain()
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plainly(each) for name, each in vars(value).items()}
    if isinstance(value, Mapping):
        return {name: _plainly(each) for name, each in value.items()}
    return [_plainly(each) for each in value] if isinstance(value, list | tuple) else value


def _rows_table(rows: Iterable[Row], title: str | None = None) -> Table:
    table = Table(title=title, box=box.SIMPLE, show_header=False, pad_edge=False, title_justify="left")
    table.add_column(min_width=16, overflow="fold")
    table.add_column(justify="right", min_width=12, style="bold", overflow="fold")
    table.add_column(style="dim", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _samples(number: int, experiment: Experiment) -> str:
    return _count(number, *(("query", "queries") if experiment.batch_of == "queries" else ("video", "videos")))


def _model_and_data(plan: Plan, experiment: Experiment) -> Iterator[Row]:
    yield "parameters", f"{plan.parameters:,}", f"{plan.parameters / 1e6:.1f} million"
    yield "computes on", plan.device.replace("cuda", "GPU").replace("cpu", "CPU"), plan.dtype
    for name in sorted(plan.queries):
        videos = _count(plan.videos[name], "video", "videos")
        remark = coarse(plan.queries[name]) if name == "val" else None
        yield name, _count(plan.queries[name], "query", "queries"), f"of {videos}{f'; {remark}' if remark else ''}"
    if experiment.data.text == "tokens":
        yield "text", "tokens", f"features of size {experiment.data.word_size} from {experiment.data.tokens}"
    pieces = -(-plan.samples // plan.micro_batch)
    computed = "whole at once" if pieces == 1 else f"{pieces} times up to {_samples(plan.micro_batch, experiment)}"
    queries = f"up to {_count(plan.batch, 'query', 'queries')}, " if experiment.batch_of == "videos" else ""
    yield "batch", _samples(plan.samples, experiment), f"{queries}computed {computed}"
    epochs = experiment.train.epochs
    yield "steps", f"{plan.total_steps:,}", f"{plan.steps_per_epoch:,} per epoch, {epochs:,} epochs"


def _memory(plan: Plan, experiment: Experiment) -> Iterator[Row]:
    need = plan.memory
    model = need.weights + need.gradients + need.optimiser + need.ema + need.copies
    parts = [("weights", need.weights), ("gradients", need.gradients), ("optimiser", need.optimiser)]
    parts += [(name, size) for name, size in (("mean of weights", need.ema), ("copies", need.copies)) if size]
    yield "model", size_text(model), ", ".join(f"{name} {size_text(size)}" for name, size in parts)
    samples = f"{_samples(plan.micro_batch, experiment)} of {size_text(need.sample)}"
    yield f"{experiment.batch_of} at once", size_text(need.sample * plan.micro_batch), samples
    yield (
        "estimated",
        size_text(need.total(plan.micro_batch)),
        f"for the trial, of {size_text(plan.available_bytes)} available",
    )
    whole = f"; {size_text(plan.peak_bytes)} " + (
        "on the GPU" if plan.device == "cuda" else "with Python, libraries and data"
    )
    yield "measured", size_text(plan.peak_bytes - plan.base_bytes), f"for the trial, at its peak{whole}"
    yield "on disk", size_text(plan.checkpoint_bytes), "the best checkpoint, the last two, and one being written"


def _trial_time(plan: Plan, experiment: Experiment) -> Iterator[Row]:
    rate = plan.epoch_queries / (plan.steps_per_epoch * plan.seconds_per_step)
    measured = f"{rate:.3g} queries/s, median of {plan.measured_steps} steps"
    yield "step", duration_text(plan.seconds_per_step), measured
    evaluated = min(experiment.train.eval_queries or plan.queries["val"], plan.queries["val"])
    yield "evaluation", duration_text(plan.val_seconds), f"{evaluated:,} val queries"
    yield "epoch", duration_text(plan.seconds_per_epoch), "steps and evaluation"
    yield "in all", duration_text(plan.seconds), f"{experiment.train.epochs:,} epochs"


def _parameters(plan: SearchPlan) -> RenderableType:
    base = plan.base.plain()
    table = head_table("parameter", "kind", "values", "only if", "base", right=("base",), fold=True)
    for key, parameter in plan.space.parameters.items():
        kind = parameter.type + (", per layer" if parameter.per_layer else "")
        conditions = (f"{other} is {' or '.join(map(_plain, values))}" for other, values in parameter.when.items())
        cells = (key, kind, _values(parameter), " and ".join(conditions), _plain(get_key(base, key, "-")))
        table.add_row(*map(escape, cells))
    return table


def _values(parameter: Parameter) -> str:
    if isinstance(parameter, Categorical):
        return ", ".join(map(_plain, parameter.choices))
    scale = ", log" if parameter.log else ""
    stepped = parameter.step not in (None, 1) or (parameter.type == "float" and parameter.step is not None)
    step = f", step {_plain(parameter.step)}" if stepped else ""
    return f"{_plain(parameter.low)} to {_plain(parameter.high)}{step}{scale}"


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _points(plan: SearchPlan) -> Iterator[Row]:
    size = f"{plan.points:,}" if plan.points < _MANY else f"{plan.points:.2e}"
    if plan.endless:
        continuous = f"{len(plan.endless)} continuous parameter" + ("s" if len(plan.endless) > 1 else "")
        yield "points", "continuous", f"{size} combinations of the others, and {continuous}"
    else:
        yield "points", size, "conditions observed; constraints not"
    sampler, stopping = plan.space.sampler, plan.space.early_stopping
    rule: str = stopping.name
    if stopping.row.brackets:
        least = stopping.min_resource or 1
        unit = stopping.unit.removesuffix("s") + ("s" if least > 1 else "")
        others = ", others pause" if stopping.mode == "promote" else ""
        rule += f" from {least} {unit} on, the best 1/{stopping.reduction_factor}{others}"
    if stopping.name == "curve":
        rule += f" once {max(stopping.startup_trials, math.ceil(1 / stopping.chance) - 1)} trials are complete"
    yield "trials", f"{plan.trials:,}", f"sampler {sampler.name}, early stopping {rule}"
    if (confirm := plan.space.confirm).top:
        yield (
            "of them",
            f"{confirm.trials:,}",
            f"confirm the best {confirm.top}, under {confirm.seeds} further seeds each",
        )
    objectives = [objective.metric for objective in plan.space.objectives] or [plan.base.eval.metric]
    yield "objective" + ("s" if len(objectives) > 1 else ""), ", ".join(objectives), "on the val split"


def _refusals(plan: SearchPlan) -> Iterator[Row]:
    from cdn_tune.tuning.planning.plan import refused_name

    yield "in all", f"{100 * plan.refused:.0f} %", f"of {plan.proposals} random proposals; samplers learn to avoid them"
    for name, share in plan.reasons.items():
        yield refused_name(name), f"{100 * share:.0f} %", f"e.g. {plan.example[name]}"


def _sizes(plan: SearchPlan) -> Iterator[Row]:
    device = "GPU" if plan.device == "cuda" else "CPU"
    units = {
        "parameters": ("", "of the model"),
        "memory_gb": (" GB", f"a worker in training, estimated for a {device}, of {plan.sized} proposals"),
        "checkpoint_gb": (" GB", "a running trial's checkpoints on disk"),
    }
    for name, found in plan.costs.items():
        values = (found.low, found.middle, found.high)
        shown = [_short(value) if name == "parameters" else f"{value:.3g}" for value in values]
        unit, about = units[name]
        yield name, " · ".join(shown) + unit, about


def _short(value: float) -> str:
    return f"{value / 1e6:.3g} M" if value >= 1e6 else f"{value / 1e3:.3g} k"


def _room(plan: SearchPlan) -> Iterator[Row]:
    resources, budget = plan.space.resources, plan.space.disk_budget_gb
    found = [f"{amount:g} {name}{'s' if amount != 1 else ''}" for name, amount in plan.available.items() if amount]
    needs = f"{resources.workers} x {resources.cpus_per_worker} CPUs"
    needs += f" and {resources.gpus_per_worker:g} GPUs" if resources.gpus_per_worker else ""
    yield "trials at once", str(plan.slots) if plan.slots else "none", f"each {needs}, of {', '.join(found)}"
    held = holding(plan.space, max(plan.slots, 1), plan.trials)
    running = "running or paused" if plan.space.early_stopping.mode == "promote" else "running"
    kept = f"{held} {running}, {max(plan.space.keep, plan.space.confirm.top)} kept; at most"
    yield "checkpoints", f"{plan.disk_gb:.3g} GB", kept + (f", of disk_budget_gb={budget:g}" if budget else "")
    yield "free", f"{plan.free_gb:.3g} GB", "on the run folder's disk"
    if plan.writes is not None:
        alone = f"{plan.writes.disk_gb_per_second:.2g} GB/s"
        disk = f"of checkpoints by the clock, all trials together; a write alone goes at {alone}"
        yield "written", f"{plan.writes.gb_per_second:.2g} GB/s", disk


def _time(plan: SearchPlan) -> Iterator[Row]:
    full = plan.full_epochs
    stopping, budget = plan.space.early_stopping, plan.space.budget
    expected = "all of them" if stopping.name == "none" else "at most, early stopping apart"
    expected = "expected" if stopping.row.brackets else expected
    if plan.epochs is not None:
        yield "epochs", f"{plan.epochs:,.0f}", f"{expected}; {full:,} if no trial is stopped"
    else:
        yield (
            "epochs",
            f"{full:,}",
            f"if no trial is stopped; early stopping counts {plan.space.early_stopping.unit}, unknown here",
        )
    duration = plan.duration
    if duration is None:
        yield "seconds", "not measured", plan.missing or "the length of early stopping is unknown"
        return
    for name, trial in duration.measured.items():
        base = f"{name}'s base experiment" if len(duration.measured) > 1 else "base experiment"
        about = f"{base} on one {'GPU' if trial.device == 'cuda' else 'CPU'} worker, {trial.measured_steps} steps "
        yield "epoch", duration_text(trial.seconds_per_epoch), about + "measured; other points take more or less"
    yield "all trials", duration_text(duration.trial_hours * _HOUR), "one after the other"
    if duration.wall_hours is not None:
        about = "as many at once as there is room for"
        if budget.hours is not None and budget.hours < duration.wall_hours:
            about += f"; budget.hours={budget.hours:g} ends it earlier"
        yield "wall clock", duration_text(duration.wall_hours * _HOUR), about
    if duration.gpu_hours:
        about = "" if budget.gpu_hours is None else f"budget.gpu_hours={budget.gpu_hours:g}"
        yield "GPU-hours", f"{duration.gpu_hours:.3g}", about
