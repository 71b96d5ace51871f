"""A search space: which keys of an experiment vary, how points are proposed, when a trial or the search is stopped."""

import math
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cdn_tune.config.expression import Expression, parse_expression
from cdn_tune.config.keys import Frozen, Positive
from cdn_tune.config.parameters import MOST_VALUES, Categorical, Choice, Parameter
from cdn_tune.config.tables import SAMPLERS, STOPPING_RULES, Sampler, StoppingRule
from cdn_tune.config.tracking import TrackingConfig
from cdn_tune.model import families


class SamplerConfig(Frozen):
    """How Optuna proposes the next trial."""

    name: Annotated[str, SAMPLERS] = "tpe"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="seeds the proposals")
    startup_trials: Annotated[int, Field(ge=0)] = Field(
        10, description="random trials before tpe, gp and cmaes model the results"
    )
    population: Annotated[int, Field(ge=2)] = Field(20, description="trials per generation of nsga2 and nsga3")

    @property
    def row(self) -> Sampler:
        """The sampler's row of the table."""
        return SAMPLERS[self.name]


class EarlyStoppingConfig(Frozen):
    """When a trial that lags behind is pruned, or paused."""

    name: Annotated[str, STOPPING_RULES] = "asha"
    mode: Literal["stop", "promote"] = Field(
        "stop",
        description="asha and hyperband: a trial that is not among the best at a rung is stopped, or (promote) paused "
        "with its checkpoint, and goes on once it is among them",
    )
    unit: Literal["epoch", "step", "seconds"] = Field(
        "epoch",
        description="what a trial's progress is counted in: epochs, optimiser steps, or seconds of training and "
        "evaluation",
    )
    min_resource: Positive | None = Field(
        None,
        description="epochs, steps or seconds that every trial gets; unset: two fifths of the epochs of the "
        "shortest trial, or 1 step or second",
    )
    metrics: Annotated[tuple[str, ...], Field(strict=False, max_length=10)] = Field(
        (), description="val metrics in which a trial may lag; eval.metric alone, or all objectives at rungs, if empty"
    )
    combine: Literal["any", "all"] = Field(
        "any", description="several metrics: a trial lags if it does in any of them, or only if it does in all"
    )
    reduction_factor: Annotated[int, Field(ge=2)] = Field(
        3, description="asha and hyperband keep the best 1/reduction_factor"
    )
    startup_trials: Annotated[int, Field(ge=0)] = Field(
        5, description="median, percentile and curve: trials that finish before any is pruned"
    )
    percentile: Annotated[float, Field(ge=0, le=100)] = Field(
        50.0, description="percentile: trials among the best so many percent go on"
    )
    p_value: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="wilcoxon: a trial is pruned when being as good as the best is less probable than this"
    )
    chance: Annotated[float, Field(ge=0.001, le=0.5)] = Field(
        0.2,
        description="curve: a trial is pruned when reaching the best complete one is no more probable than this; "
        "1/chance - 1 complete trials are the least by which that can be told",
    )
    patience: Positive = Field(5, description="patience: reports without a better val metric that are borne")

    @property
    def row(self) -> StoppingRule:
        """The rule's row of the table."""
        return STOPPING_RULES[self.name]

    @property
    def least(self) -> int:
        """`min_resource` as reports count: in milliseconds where the unit is seconds; 1 where it is unset."""
        return (self.min_resource or 1) * (1000 if self.unit == "seconds" else 1)

    @model_validator(mode="after")
    def _check(self) -> "EarlyStoppingConfig":
        if self.mode == "promote" and not self.row.brackets:
            halving = " or ".join(name for name, row in STOPPING_RULES.items() if row.brackets)
            raise ValueError(f"mode=promote pauses trials at rungs, and {self.name} has none; use {halving}")
        if self.unit == "seconds" and self.row.brackets == "all":
            raise ValueError(f"{self.name} needs the length of a trial, which is unknown in seconds; use asha")
        if self.metrics and (self.name == "none" or self.row.compares == "queries"):
            raise ValueError(f"{self.name} compares no metrics; drop metrics")
        return self


class ResourcesConfig(Frozen):
    """What one trial occupies."""

    workers: Positive = Field(1, description="training workers; above 1 each trial is a Ray Train group")
    cpus_per_worker: Positive = Field(
        1, description="CPUs per worker, and its most torch threads: one per million parameters"
    )
    gpus_per_worker: Annotated[float, Field(ge=0, le=1024)] = Field(
        0.0, description="GPUs per worker; a fraction shares a GPU between one-worker trials"
    )

    @model_validator(mode="after")
    def _check(self) -> "ResourcesConfig":
        gpus = self.gpus_per_worker
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_worker={gpus} must be a fraction below 1 or a whole number")
        if self.workers > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_worker={gpus} shares a GPU, which workers={self.workers} cannot; use 0 or 1")
        return self


class BudgetConfig(Frozen):
    """What ends a search besides the number of its trials; whatever comes first."""

    hours: Annotated[float, Field(gt=0)] | None = Field(
        None, description="hours of searching, over all starts; then running trials stop with a checkpoint"
    )
    gpu_hours: Annotated[float, Field(gt=0)] | None = Field(
        None, description="GPU-hours of all trials; then running trials stop with a checkpoint"
    )
    target: float | None = Field(None, description="value of the first objective that is good enough")
    plateau: Positive | None = Field(
        None, description="so many finished trials in a row without a better best; running ones then end"
    )


class ConfirmConfig(Frozen):
    """Training the best trials again, under further seeds, before the search ends; the best by mean then wins."""

    top: Annotated[int, Field(ge=0)] = Field(0, description="trials that are confirmed, the best on val; 0: none")
    seeds: Positive = Field(3, description="further seeds under which each is trained again, to its end")

    @property
    def trials(self) -> int:
        """Trials that it takes."""
        return self.top * self.seeds


class Objective(Frozen):
    """What is optimised: a val metric, or what a trial costs."""

    metric: str = Field(description="a val metric such as R1@0.5, or parameters, memory_gb, latency_ms, seconds")
    direction: Literal["maximize", "minimize"] | None = Field(
        None, description="val metrics are maximised, costs minimised, if unset"
    )


MEASURED_COSTS = ("parameters", "memory_gb", "latency_ms", "seconds")  # objectives that are no val metrics


class SearchSpace(Frozen):
    """A search: a base experiment, the parameters that vary over it, and the budget."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)] = Field(
        description="names the run folder, runs/<name>, and the study"
    )
    experiment: str = Field(description="base experiment, a path relative to this file")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="dotted keys fixed to other values than the base's"
    )
    family_overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="by model family, dotted keys fixed to other values in its trials than the base's or its defaults",
    )
    parameters: Annotated[dict[str, Parameter], Field(min_length=1, max_length=200)] = Field(
        description="dotted keys that vary"
    )
    constraints: Annotated[tuple[str, ...], Field(strict=False, max_length=100)] = Field(
        (),
        description="what every trial must satisfy before it starts, over keys and the costs parameters, memory_gb, "
        "checkpoint_gb; e.g. parameters <= 4e8",
    )
    start_with: Annotated[tuple[dict[str, Choice], ...], Field(strict=False, max_length=1000)] | None = Field(
        None,
        description="points to try first; keys left out are sampled; unset: the base experiment's own values, unless "
        "the sampler goes through all points anyway",
    )
    objectives: Annotated[tuple[Objective, ...], Field(strict=False, max_length=10)] = Field(
        (),
        description="what is optimised; the first is eval.metric, by which early stopping decides (asha and "
        "hyperband: by all); eval.metric alone if empty",
    )
    trials: Positive = Field(20, description="trials in all, confirmations too; refused proposals do not count")
    budget: BudgetConfig = BudgetConfig()
    confirm: ConfirmConfig = ConfirmConfig()
    sampler: SamplerConfig = SamplerConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    resources: ResourcesConfig = ResourcesConfig()
    keep: Positive = Field(3, description="checkpoints of the best trials that are kept")
    disk_budget_gb: Annotated[float, Field(gt=0)] | None = Field(
        None, description="most that checkpoints of the whole run may occupy, in 10^9 bytes"
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(
        2, description="how often a trial is taken up again after its worker or node died"
    )
    tracking: TrackingConfig = Field(TrackingConfig(), exclude=True)  # fixed in the base experiment by `read_space`

    @field_validator("objectives", mode="before")
    @classmethod
    def _named(cls, objectives: Any) -> Any:
        if not isinstance(objectives, list | tuple):
            return objectives
        return [{"metric": each} if isinstance(each, str) else each for each in objectives]

    @cached_property
    def expressions(self) -> tuple[Expression, ...]:
        """The constraints, parsed."""
        return tuple(parse_expression(text) for text in self.constraints)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The parameters in the order they are sampled: each after those that its conditions name.

        Raises:
            ValueError: If conditions go in a circle.
        """
        ordered: list[str] = []
        waiting = dict(self.parameters)
        while waiting:
            ready = [key for key, parameter in waiting.items() if not (_needs(key, parameter) & waiting.keys())]
            if not ready:
                raise ValueError(f"the conditions of {', '.join(waiting)} go in a circle; drop one `when`")
            ordered += ready
            for key in ready:
                del waiting[key]
        return tuple(ordered)

    def reads(self, base: str) -> tuple[bool, ...]:
        """Returns how its families, or the base's, read videos, as sequences or not: one value, or both."""
        searched = self.parameters.get("model.name")
        names = (base,) if searched is None else searched.probes
        return tuple(sorted({families.family(name).inputs.sequences for name in names}))

    @property
    def is_conditional(self) -> bool:
        """Whether some parameters are sampled in some trials only."""
        return any(parameter.when or parameter.per_layer for parameter in self.parameters.values())

    @property
    def is_finite(self) -> bool:
        """Whether all values can be counted."""
        return all(parameter.values is not None for parameter in self.parameters.values())

    @model_validator(mode="after")
    def _check(self) -> "SearchSpace":
        for key in self.parameters:
            if key in self.overrides:
                raise ValueError(f"{key} is both in overrides and in parameters; keep one")
        for point in self.start_with or ():
            self._check_point(point)
        _ = self.order, self.expressions  # parsed, or refused
        named = {other for key, parameter in self.parameters.items() for other in _needs(key, parameter)}
        found = [self.parameters[key].values or () for key in sorted(named & self.parameters.keys())]
        if math.prod(len(values) or 1 for values in found) > MOST_VALUES:
            raise ValueError(
                f"what {' and '.join(sorted(named & self.parameters.keys()))} can be is too much for conditions: more "
                f"than {MOST_VALUES:,} combinations of values; narrow them, or drop a `when` or per_layer"
            )
        self._check_sampler()
        if self.confirm.top and len(self.objectives) > 1:
            raise ValueError("confirm finds the best by one value, and there are several objectives; drop confirm")
        return self

    def _check_point(self, point: dict[str, Choice]) -> None:
        for key, value in point.items():
            if key not in self.parameters:
                raise ValueError(f"start_with names {key}, which is not among parameters")
            if not self.parameters[key].has(value):
                raise ValueError(f"start_with sets {key} to {value!r}, which parameters.{key} does not allow")

    def _check_sampler(self) -> None:
        name, row = self.sampler.name, self.sampler.row
        if row.enumerates:
            endless = [key for key, parameter in self.parameters.items() if parameter.values is None]
            if endless:
                raise ValueError(f"sampler {name} goes through all values, and {endless[0]} has no end; give it a step")
            for key, parameter in self.parameters.items():
                if len(parameter.values or ()) > MOST_VALUES:
                    raise ValueError(f"sampler {name} goes through all values of {key}, which are too many; narrow it")
            if self.start_with:
                raise ValueError(f"sampler {name} goes through all points anyway; drop start_with")
        if not row.conditions and self.is_conditional:
            raise ValueError(f"sampler {name} knows no conditions; use brute_force, or drop when and per_layer")
        if row.models == "numeric" and all(isinstance(each, Categorical) for each in self.parameters.values()):
            raise ValueError(f"sampler {name} models float and int parameters, and all here are categorical; use tpe")
        if not row.objectives and len(self.objectives) > 1:
            raise ValueError(f"sampler {name} optimises one objective; use tpe, gp, nsga2 or nsga3")


def _needs(key: str, parameter: Parameter) -> set[str]:
    return {*parameter.when, families.layers_key(key) if parameter.per_layer else key} - {key}
