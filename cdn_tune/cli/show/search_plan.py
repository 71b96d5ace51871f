"""A search's plan as tables: what it will take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from cdn_tune.cli.show.tables import experiment_line
from cdn_tune.cli.show.text import duration_text, head_table
from cdn_tune.cli.show.trial_plan import rows_table
from cdn_tune.config import Categorical, Parameter
from cdn_tune.config.keys import get_key
from cdn_tune.tuning.planning.plan import HALVING, SearchPlan, refused_name

_HOUR = 3600.0
_MANY = 10**6

Row = tuple[str, str, str]


def search_plan_table(plan: SearchPlan) -> Group:
    """Returns a plan as a heading and tables: the space, proposals, sizes, room and time."""
    return Group(
        Text(f"{plan.space.name}: over {plan.base.name} ({experiment_line(plan.base)})", style="bold"),
        _parameters(plan),
        rows_table(_points(plan)),
        rows_table(_refusals(plan), "proposals that would be refused"),
        rows_table(_sizes(plan), "sizes of those that may start: least, median, most"),
        rows_table(_room(plan), "room"),
        rows_table(_time(plan), "time"),
    )


def _parameters(plan: SearchPlan) -> RenderableType:
    base = plan.base.plain()
    table = head_table("parameter", "kind", "values", "only if", "base", right=("base",), fold=True)
    for key, parameter in plan.space.parameters.items():
        kind = parameter.type + (", per layer" if parameter.per_layer else "")
        condition = " and ".join(f"{other} is {_any(values)}" for other, values in parameter.when.items())
        cells = (key, kind, _values(parameter), condition, _plain(get_key(base, key, "-")))
        table.add_row(*map(escape, cells))
    return table


def _values(parameter: Parameter) -> str:
    if isinstance(parameter, Categorical):
        return ", ".join(map(_plain, parameter.choices))
    scale = ", log" if parameter.log else ""
    stepped = parameter.step not in (None, 1) or (parameter.type == "float" and parameter.step is not None)
    step = f", step {_plain(parameter.step)}" if stepped else ""
    return f"{_plain(parameter.low)} to {_plain(parameter.high)}{step}{scale}"


def _any(values: Iterable[Any]) -> str:
    return " or ".join(map(_plain, values))


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
    if rule in HALVING:
        unit = f"{stopping.unit}{'s' if stopping.min_resource > 1 else ''}"
        rule += f" from {stopping.min_resource} {unit} on, the best 1/{stopping.reduction_factor}"
    yield "trials", f"{plan.trials:,}", f"sampler {sampler.name}, early stopping {rule}"
    objectives = [objective.metric for objective in plan.space.objectives] or [plan.base.eval.metric]
    yield "objective" + ("s" if len(objectives) > 1 else ""), ", ".join(objectives), "on the val split"


def _refusals(plan: SearchPlan) -> Iterator[Row]:
    yield "in all", f"{100 * plan.refused:.0f} %", f"of {plan.proposals} random proposals; samplers learn to avoid them"
    for name, share in plan.reasons.items():
        yield refused_name(name), f"{100 * share:.0f} %", f"e.g. {plan.example[name]}"


def _sizes(plan: SearchPlan) -> Iterator[Row]:
    units = {"parameters": "", "memory_gb": " GB", "checkpoint_gb": " GB"}
    about = {
        "parameters": "of the model",
        "memory_gb": f"a worker in training, estimated for a {'GPU' if plan.device == 'cuda' else 'CPU'}, "
        f"of {plan.sized} proposals",
        "checkpoint_gb": "a running trial's checkpoints on disk",
    }
    for name, found in plan.costs.items():
        values = (found.low, found.middle, found.high)
        shown = [_short(value) if name == "parameters" else f"{value:.3g}" for value in values]
        yield name, " · ".join(shown) + units[name], about[name]


def _short(value: float) -> str:
    """Returns a number of parameters in thousands or millions."""
    return f"{value / 1e6:.3g} M" if value >= 1e6 else f"{value / 1e3:.3g} k"


def _room(plan: SearchPlan) -> Iterator[Row]:
    resources = plan.space.resources
    has = ", ".join(
        f"{amount:g} {name}{'s' if amount != 1 else ''}" for name, amount in plan.available.items() if amount
    )
    needs = f"{resources.workers} x {resources.cpus_per_worker} CPUs"
    needs += f" and {resources.gpus_per_worker:g} GPUs" if resources.gpus_per_worker else ""
    yield "trials at once", str(plan.slots) if plan.slots else "none", f"each {needs}, of {has}"
    budget = plan.space.disk_budget_gb
    yield (
        "checkpoints",
        f"{plan.disk_gb:.3g} GB",
        f"{max(plan.slots, 1)} running, {plan.space.keep} kept; at most"
        + (f", of disk_budget_gb={budget:g}" if budget else ""),
    )
    yield "free", f"{plan.free_gb:.3g} GB", "on the run folder's disk"


def _time(plan: SearchPlan) -> Iterator[Row]:
    full = plan.trials * plan.base.train.epochs
    rule = plan.space.early_stopping.name
    expected = "expected" if rule in HALVING else ("all of them" if rule == "none" else "at most, early stopping apart")
    if plan.epochs is not None:
        yield "epochs", f"{plan.epochs:,.0f}", f"{expected}; {full:,} if no trial is stopped"
    else:
        yield "epochs", f"{full:,}", "if no trial is stopped; early stopping counts steps, unknown without the data"
    duration = plan.duration
    if duration is None:
        yield "seconds", "not measured", plan.missing or "the length of early stopping is unknown"
        return
    trial = duration.trial
    yield (
        "epoch",
        duration_text(trial.seconds_per_epoch),
        f"base experiment on one {'GPU' if trial.device == 'cuda' else 'CPU'} worker, {trial.measured_steps} steps "
        "measured; other points take more or less",
    )
    yield "all trials", duration_text(duration.trial_hours * _HOUR), "one after the other"
    if duration.wall_hours is not None:
        cap = plan.space.budget.hours
        told = "as many at once as there is room for"
        if cap is not None and cap < duration.wall_hours:
            told += f"; budget.hours={cap:g} ends it earlier"
        yield "wall clock", duration_text(duration.wall_hours * _HOUR), told
    if duration.gpu_hours:
        cap = plan.space.budget.gpu_hours
        told = f"budget.gpu_hours={cap:g}" if cap is not None else ""
        yield "GPU-hours", f"{duration.gpu_hours:.3g}", told
