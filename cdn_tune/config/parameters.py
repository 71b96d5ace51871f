"""What varies in a search: a key's range or choices, and the conditions under which it is sampled."""

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cdn_tune.config.keys import Frozen, Positive
from cdn_tune.config.yaml import GREATEST, shown

Choice = Annotated[str, Field(max_length=1000)] | bool | int | float | None
Choices = Annotated[tuple[Choice, ...], Field(strict=False, min_length=1, max_length=1000)]

_MANY = 100  # whole numbers up to which all of them stand for a range when a space is checked
MOST_VALUES = 100_000  # that are gone through one by one: of a float with a step, of an enumeration, of conditions


class _Varying(Frozen):
    """The keys that all kinds of parameters have."""

    when: dict[str, Choices] = Field(
        default_factory=dict,
        description="sampled only if these keys have these values, e.g. {model.clip_pool: attention}; "
        "a list of values means any of them",
    )
    per_layer: bool = Field(
        False, description="sample a value for every layer of the map stack, for keys that take a list"
    )

    @field_validator("when", mode="before")
    @classmethod
    def _one_or_many(cls, when: Any) -> Any:
        if not isinstance(when, dict):
            return when
        return {key: value if isinstance(value, list | tuple) else [value] for key, value in when.items()}


class Float(_Varying):
    """A real number in [low, high]."""

    type: Literal["float"] = "float"
    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]
    log: bool = Field(False, description="sample the logarithm uniformly")
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="distance between the values"
    )

    @model_validator(mode="after")
    def _check(self) -> "Float":
        _check_range(self)
        return self

    @property
    def values(self) -> Sequence[Choice] | None:
        """All values, if they can be counted."""
        if self.low == self.high:
            return (self.low,)
        if self.step is None:
            return None
        count = int(_steps(self) + 1e-9) + 1
        return tuple(float(f"{self.low + index * self.step:.12g}") for index in range(count))

    @property
    def probes(self) -> tuple[Choice, ...]:
        """Values that stand for all when the space is checked."""
        return (self.low, self.high)

    def has(self, value: Choice) -> bool:
        """Whether the value can be sampled."""
        if not isinstance(value, float | int) or isinstance(value, bool) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-6


class Int(_Varying):
    """A whole number in [low, high]."""

    type: Literal["int"] = "int"
    low: Annotated[int, Field(ge=-GREATEST, le=GREATEST)]
    high: Annotated[int, Field(ge=-GREATEST, le=GREATEST)]
    log: bool = Field(False, description="sample the logarithm uniformly")
    step: Positive = Field(1, description="distance between the values")

    @model_validator(mode="after")
    def _check(self) -> "Int":
        _check_range(self)
        if self.log and self.step != 1:
            raise ValueError(f"step={self.step} and log cannot be combined; drop one of them")
        return self

    @property
    def values(self) -> Sequence[Choice]:
        """All values."""
        return range(self.low, self.high + 1, self.step)

    @property
    def probes(self) -> Sequence[Choice]:
        """Values that stand for all when the space is checked: all of a short range, else its ends."""
        return self.values if len(self.values) <= _MANY else (self.low, self.high)

    def has(self, value: Choice) -> bool:
        """Whether the value can be sampled."""
        return type(value) is int and value in range(self.low, self.high + 1, self.step)


class Categorical(_Varying):
    """One of a list of values."""

    type: Literal["categorical"] = "categorical"
    choices: Choices

    @model_validator(mode="after")
    def _check(self) -> "Categorical":
        seen = set()
        for choice in self.choices:
            if (type(choice), choice) in seen:
                raise ValueError(f"choice {shown(choice)} appears twice; drop one of them")
            seen.add((type(choice), choice))
        return self

    @property
    def values(self) -> Sequence[Choice]:
        """All values."""
        return self.choices

    @property
    def probes(self) -> tuple[Choice, ...]:
        """All values."""
        return self.choices

    def has(self, value: Choice) -> bool:
        """Whether the value can be sampled."""
        return any(choice == value and isinstance(choice, bool) == isinstance(value, bool) for choice in self.choices)


Parameter = Annotated[Float | Int | Categorical, Field(discriminator="type")]


def _check_range(parameter: Float | Int) -> None:
    if parameter.low > parameter.high:
        raise ValueError(f"low={parameter.low} is above high={parameter.high}; swap them")
    if parameter.log and parameter.low <= 0:
        raise ValueError(f"low={parameter.low} must be above 0 when log is true")
    if isinstance(parameter, Float) and parameter.log and parameter.step is not None:
        raise ValueError(f"step={parameter.step} and log cannot be combined; drop one of them")
    if parameter.step is None:
        return
    if isinstance(parameter, Float) and _steps(parameter) > MOST_VALUES:
        raise ValueError(f"step={parameter.step} makes more than {MOST_VALUES:,} values; raise it, or drop it")
    low, high, step = (Decimal(str(value)) for value in (parameter.low, parameter.high, parameter.step))
    if (high - low) % step:
        nearest = high - (high - low) % step
        raise ValueError(f"high={high} is not reached from low={low} in steps of {step}; use high={nearest}")


def _steps(parameter: Float) -> float:
    return (parameter.high - parameter.low) / (parameter.step or math.inf)
