"""A search space: which keys of an experiment vary, how they are sampled, and when a trial is stopped early."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cdn_tune.config.base import Frozen
from cdn_tune.config.model import Positive

Choice = str | bool | int | float | None


class Float(Frozen):
    """A real number in [low, high]."""

    type: Literal["float"] = "float"
    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]
    log: bool = Field(False, description="sample the logarithm uniformly")
    step: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Float:
        _check_range(self)
        return self

    @property
    def probes(self) -> tuple[Choice, ...]:
        """Values that stand for all when the space is checked."""
        return (self.low, self.high)

    def has(self, value: Choice) -> bool:
        """Whether the value can be sampled."""
        return isinstance(value, float | int) and not isinstance(value, bool) and self.low <= value <= self.high


class Int(Frozen):
    """A whole number in [low, high]."""

    type: Literal["int"] = "int"
    low: int
    high: int
    log: bool = Field(False, description="sample the logarithm uniformly")
    step: Positive = 1

    @model_validator(mode="after")
    def _check(self) -> Int:
        _check_range(self)
        if self.log and self.step != 1:
            raise ValueError(f"step={self.step} and log cannot be combined; drop one of them")
        return self

    @property
    def probes(self) -> tuple[Choice, ...]:
        """Values that stand for all when the space is checked: all of a short range, else its ends."""
        values = range(self.low, self.high + 1, self.step)
        return tuple(values) if len(values) <= 100 else (self.low, self.high)

    def has(self, value: Choice) -> bool:
        """Whether the value can be sampled."""
        return isinstance(value, int) and value in range(self.low, self.high + 1, self.step)


class Categorical(Frozen):
    """One of a list of values."""

    type: Literal["categorical"] = "categorical"
    choices: Annotated[tuple[Choice, ...], Field(strict=False, min_length=1)]

    @property
    def probes(self) -> tuple[Choice, ...]:
        """All choices."""
        return self.choices

    def has(self, value: Choice) -> bool:
        """Whether the value can be sampled."""
        return value in self.choices


Parameter = Annotated[Float | Int | Categorical, Field(discriminator="type")]


def _check_range(parameter: Float | Int) -> None:
    if parameter.low > parameter.high:
        raise ValueError(f"low={parameter.low} is above high={parameter.high}; swap them")
    if parameter.log and parameter.low <= 0:
        raise ValueError(f"low={parameter.low} must be above 0 when log is true")
    if isinstance(parameter, Float) and parameter.log and parameter.step is not None:
        raise ValueError(f"step={parameter.step} and log cannot be combined; drop one of them")


class SamplerConfig(Frozen):
    """How Optuna proposes the next trial."""

    name: Literal["tpe", "random"] = Field("tpe", description="tpe: multivariate tree-structured Parzen estimator")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="seeds the proposals")
    startup_trials: Annotated[int, Field(ge=0)] = Field(10, description="random trials before tpe models the results")


class EarlyStoppingConfig(Frozen):
    """When a trial that lags behind is pruned."""

    name: Literal["asha", "median", "none"] = Field(
        "asha", description="asha: asynchronous successive halving; median: worse than the median trial so far"
    )
    min_epochs: Positive = Field(1, description="epochs every trial gets")
    reduction_factor: Annotated[int, Field(ge=2)] = Field(3, description="asha keeps the best 1/reduction_factor")
    startup_trials: Annotated[int, Field(ge=0)] = Field(
        5, description="median: trials that finish before any is pruned"
    )


class ResourcesConfig(Frozen):
    """What one trial occupies."""

    workers: Positive = Field(1, description="training workers; above 1 each trial is a Ray Train group")
    cpus_per_worker: Positive = Field(1, description="CPUs, and torch threads, per worker")
    gpus_per_worker: Annotated[float, Field(ge=0)] = Field(
        0.0, description="GPUs per worker; a fraction shares a GPU between one-worker trials"
    )

    @model_validator(mode="after")
    def _check(self) -> ResourcesConfig:
        if self.gpus_per_worker > 1 and self.gpus_per_worker != int(self.gpus_per_worker):
            raise ValueError(f"gpus_per_worker={self.gpus_per_worker} must be a fraction below 1 or a whole number")
        return self


class SearchSpace(Frozen):
    """A search: a base experiment, the parameters that vary over it, and the budget."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="names the run folder, runs/<name>, and the study"
    )
    experiment: str = Field(description="base experiment, a path relative to this file")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="dotted keys fixed to other values than the base's"
    )
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)] = Field(description="dotted keys that vary")
    start_with: Annotated[tuple[dict[str, Choice], ...], Field(strict=False)] = Field(
        (), description="points to try first; keys left out are sampled"
    )
    trials: Positive = Field(20, description="trials in all")
    sampler: SamplerConfig = SamplerConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    resources: ResourcesConfig = ResourcesConfig()
    keep: Positive = Field(3, description="checkpoints of the best trials that are kept")
    max_failures: Annotated[int, Field(ge=0)] = Field(
        2, description="how often a trial is taken up again after its worker died"
    )

    @model_validator(mode="after")
    def _check(self) -> SearchSpace:
        for key in self.parameters:
            if key in self.overrides:
                raise ValueError(f"{key} is both in overrides and in parameters; keep one")
        for point in self.start_with:
            for key, value in point.items():
                if key not in self.parameters:
                    raise ValueError(f"start_with names {key}, which is not among parameters")
                if not self.parameters[key].has(value):
                    raise ValueError(f"start_with sets {key} to {value!r}, which parameters.{key} does not allow")
        return self
