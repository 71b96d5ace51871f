"""What published models have in common: their interface, and weights under their names, checked and loaded."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cdn_tune.config.keys import Frozen
from cdn_tune.errors import CheckpointError

Arrays = Mapping[str, Any]  # numpy arrays or tensors by name
C = TypeVar("C", bound=Frozen)
_SHOWN = 5  # entries named in an error


class Published(nn.Module):
    """A published model that takes and gives what its code does, by the names of the recorded arrays."""

    @abstractmethod
    def raw(self, inputs: Arrays) -> dict[str, Tensor]:
        """Returns the network's outputs."""

    @abstractmethod
    def losses(self, inputs: Arrays) -> dict[str, Tensor]:
        """Returns the named parts of the training loss, and their ``total``."""

    @abstractmethod
    def predict(self, index: int, arrays: Arrays) -> list[tuple[Tensor, Tensor]]:
        """Returns the ranked moments [n, 2] in seconds, and their scores [n], of each query of a recorded case."""


def load_published(
    model: nn.Module,
    state: Arrays,
    names: Iterable[tuple[str, str]],
    shape: Callable[[str, Tensor], torch.Size] | None = None,
    convert: Callable[[Tensor, str, Tensor], Tensor] | None = None,
) -> None:
    """Loads weights under published names.

    Args:
        model: Takes the weights.
        state: Tensors or arrays by published name; a leading ``module.`` is accepted.
        names: Our name and the published one of every parameter, and of the buffers that are published; others stay.
        shape: From a published name and our tensor to the published shape; without, only axes of length 1 may differ.
        convert: From a published tensor, its name and our tensor to our shape; without, it is reshaped.

    Raises:
        CheckpointError: If entries are missing, unknown, misshapen or not finite (named).
    """
    own, table = model.state_dict(), dict(names)
    given = {name.removeprefix("module."): torch.as_tensor(value) for name, value in state.items()}
    misshapen = []
    for ours, theirs in table.items():
        if theirs in given:
            wanted = own[ours].shape if shape is None else shape(theirs, own[ours])
            found = given[theirs].shape
            if found != wanted and (shape is not None or _squeezed(found) != _squeezed(wanted)):
                misshapen.append(f"{theirs} {[*found]} instead of {[*wanted]}")
    known = set(table.values())
    faults = {
        "lack": [name for name in table.values() if name not in given],
        "hold unknown": [name for name in given if name not in known],
        "have another shape:": misshapen,
        "are not finite:": [name for name in given if not bool(given[name].isfinite().all())],
    }
    for fault, entries in faults.items():
        if entries:
            more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
            raise CheckpointError(f"published weights {fault} {', '.join(entries[:_SHOWN])}{more}")
    named = {name for name, _ in model.named_parameters()} | set(table)
    counted = {name: value for name, value in own.items() if name not in named}  # state that was not published
    model.load_state_dict(
        counted
        | {
            ours: given[theirs].reshape(own[ours].shape).to(own[ours].dtype)
            if convert is None
            else convert(given[theirs], theirs, own[ours])
            for ours, theirs in table.items()
        }
    )


def setting(config: Mapping[str, Any], path: str) -> Any:
    """Returns a published setting by its dotted path; raises a `CheckpointError` if there is none."""
    value: Any = config
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise CheckpointError(f"published settings: no {path}")
        value = value[part]
    return value


def build_config(kind: type[C], values: Mapping[str, Any]) -> C:
    """Returns a configuration section of these values; raises a `CheckpointError` if one is impossible."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"published settings: {where + ': ' if where else ''}{first['msg']}") from error


def as_tensors(arrays: Arrays) -> dict[str, Tensor]:
    """Returns arrays as tensors."""
    return {name: torch.as_tensor(value) for name, value in arrays.items()}


def recorded_inputs(arrays: Arrays) -> dict[str, Tensor]:
    """Returns the inputs of recorded arrays, ``in.*``, without their prefix."""
    prefix = "in."
    return as_tensors({name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)})


def _squeezed(shape: torch.Size) -> list[int]:
    return [size for size in shape if size != 1]
