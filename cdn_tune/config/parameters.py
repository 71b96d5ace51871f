"""What varies in a search: real numbers, whole numbers, choices; under conditions, or anew for every layer."""

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cdn_tune.config.base import Frozen, Positive

Choice = str | bool | int | float | None
Choices = Annotated[tuple[Choice, ...], Field(strict=False, min_length=1)]

_MANY = 100  # whole numbers up to which all of them stand for a range when a space is checked


class _Varying(Frozen):
    """What the kinds of parameters share."""

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
    step: Annotated[float, Field(gt=0)] | None = Field(None, description="distance between the values")

    @model_validator(mode="after")
    def _check(self) -> "Float":
        _check_range(self)
        return self

    @property
    def values(self) -> tuple[Choice, ...] | None:
        """All values, if they can be counted."""
        if self.low == self.high:
            return (self.low,)
        if self.step is None:
            return None
        count = int((self.high - self.low) / self.step + 1e-9) + 1
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
    low: int
    high: int
    log: bool = Field(False, description="sample the logarithm uniformly")
    step: Positive = Field(1, description="distance between the values")

    @model_validator(mode="after")
    def _check(self) -> "Int":
        _check_range(self)
        if self.log and self.step != 1:
            raise ValueError(f"step={self.step} and log cannot be combined; drop one of them")
        return self

    @property
    def values(self) -> tuple[Choice, ...]:
        """All values."""
        return tuple(range(self.low, self.high + 1, self.step))

    @property
    def probes(self) -> tuple[Choice, ...]:
        """Values that stand for all when the space is checked: all of a short range, else its ends."""
        return self.values if len(self.values) <= _MANY else (self.low, self.high)

    def has(self, value: Choice) -> bool:
        """Whether the value can be sampled."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and value in range(self.low, self.high + 1, self.step)


class Categorical(_Varying):
    """One of a list of values."""

    type: Literal["categorical"] = "categorical"
    choices: Choices

    @model_validator(mode="after")
    def _check(self) -> "Categorical":
        for place, choice in enumerate(self.choices):
            if choice in [other for other in self.choices[:place] if type(other) is type(choice)]:
                raise ValueError(f"choice {choice!r} appears twice; drop one of them")
        return self

    @property
    def values(self) -> tuple[Choice, ...]:
        """All values."""
        return self.choices

    @property
    def probes(self) -> tuple[Choice, ...]:
        """All choices."""
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
    low, high, step = (Decimal(str(value)) for value in (parameter.low, parameter.high, parameter.step))
    if (high - low) % step:
        nearest = high - (high - low) % step
        raise ValueError(f"high={high} is not reached from low={low} in steps of {step}; use high={nearest}")
