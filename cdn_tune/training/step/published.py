"""The published optimisation of SnAG: its warm-up and its parameter groups.

They differ from `training.step.optimiser` where a published model is to be trained exactly as it was.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import nn

COSINE_FLOOR = 1e-8


class Rates(NamedTuple):
    """A learning rate over the steps of a training.

    Attributes:
        warmup: Epochs of linear warm-up.
        epochs: Epochs after it.
        per_epoch: Steps of an epoch.
        schedule: After the warm-up: in steps down, or along half a cosine.
        drops: Epochs after the warm-up at which the rate is multiplied by `gamma`; below 0: never.
        gamma: Factor.
        from_zero: Begin at rate 0, as published, which wastes the first step; else step i has the share (i + 1) / U.
    """

    warmup: int
    epochs: int
    per_epoch: int
    schedule: Literal["multistep", "cosine"] = "multistep"
    drops: Sequence[int] = (-1,)
    gamma: float = 0.1
    from_zero: bool = False

    def at(self, step: int, base: float) -> float:
        """Returns the learning rate of a step, from 0, of a group with this rate after the warm-up."""
        warm = self.warmup * self.per_epoch
        if step < warm:
            return base * (step / max(warm - 1, 1) if self.from_zero else (step + 1) / warm)
        after = step - warm
        if self.schedule == "multistep":
            return base * self.gamma ** sum(0 <= drop * self.per_epoch <= after for drop in self.drops)
        share = min(after / (self.epochs * self.per_epoch), 1.0)
        return COSINE_FLOOR + (base - COSINE_FLOOR) * (1 + math.cos(math.pi * share)) / 2


def part_groups(parts: Sequence[tuple[nn.Module, float]], weight_decay: float) -> list[dict[str, Any]]:
    """Returns an optimiser's groups of some parts of a network with their learning rates, two for each.

    Weights with more than one dimension decay; biases, norms, scales and tokens do not.
    """
    groups = []
    for part, rate in parts:
        for decays in (True, False):
            parameters = [parameter for parameter in part.parameters() if (parameter.ndim > 1) == decays]
            groups.append({"params": parameters, "lr": rate, "weight_decay": weight_decay if decays else 0.0})
    return groups
