"""Optimisers without torch's compiler, which each process imports with its first one: a third of a trial's start."""

from inspect import unwrap
from typing import TypeVar

import torch
from torch.optim import Optimizer

Kind = TypeVar("Kind", bound=Optimizer)
_WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")  # to be passed over by the compiler


def without_compiler(kind: type[Kind]) -> type[Kind]:
    """Returns a kind of optimiser that computes the same, for steps that are not compiled themselves.

    torch wraps these methods for the compiler's sake, and imports it when one of them is first called.
    """
    plain = {name: unwrap(getattr(kind, name)) for name in _WRAPPED}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(unwrap(kind.step))})
