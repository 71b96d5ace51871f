"""What the page relies on in the files of a run; whatever else they hold is shown as far as it has the form of a table.

They may be damaged, edited by hand, or a stranger's.
"""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e300, le=1e300)]
Whole = Annotated[int, Field(ge=-(1 << 53), le=1 << 53)]
Metrics = dict[str, Number]


class Shape(BaseModel):
    """Keys with their types; others may be there besides."""

    model_config = ConfigDict(strict=True, extra="allow")


class Epoch(Shape):
    """A line of ``metrics.jsonl``."""

    epoch: Whole
    loss: Number
    learning_rate: Number
    val: Metrics = {}
    value: Number
    best_value: Number
    best_epoch: Whole


class _Part(Shape):
    """A part of an evaluation with metrics."""

    metrics: Metrics | None = None
    intervals: dict[str, list[Number] | None] | None = None


class _Advantage(Shape):
    difference: Metrics | None = None
    intervals: dict[str, list[Number] | None] | None = None
    p_values: dict[str, Number | None] | None = None


class _Chosen(Shape):
    split: str = "val"
    metric: str | None = None
    value: Number | None = None


class _Bootstrap(Shape):
    level: Number


class Evaluation(_Part):
    """An ``evaluation.json`` of any version."""

    std: Metrics | None = None
    baselines: dict[str, _Part] | None = None
    advantage: _Advantage | None = None
    models: list[dict[str, Any]] | None = None
    chosen_by: _Chosen | str | None = None
    bootstrap: _Bootstrap = _Bootstrap(level=0.95)
    experiment: dict[str, Any] | None = None
    data_changed: list[str] | None = None
    split: str = "test"
    queries: Whole | None = None
    looks: Whole = 1
    checkpoint: str = ""
    label: str | None = None
    reported: str | None = None


class _Choice(Shape):
    metric: str | None = None


class _Data(Shape):
    dataset: str | None = None


class Experiment(Shape):
    """A plain experiment, which a train run's page quotes."""

    name: str | None = None
    seed: Annotated[int, Field(ge=0, le=1 << 53)] = 0
    eval: _Choice = _Choice()
    data: _Data = _Data()


_Shape = TypeVar("_Shape", bound=Shape)


def misfit(shape: type[_Shape], value: Any) -> str | None:
    """Returns what of a value does not have a shape, as ``key: reason``; None if all has."""
    try:
        shape.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:100]
        return f"{where}: {first['msg']}" if where else str(first["msg"])
    return None
