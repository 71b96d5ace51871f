"""A running mean of a model's weights, which often retrieves better than the weights themselves."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """Exponential moving average of weights; buffers are those of the model.

    The first updates count more, min(decay, (1 + n) / (10 + n)) after n of them, so that the untrained weights fade.

    Args:
        model: Whose weights are averaged.
        decay: Share of the old average that stays at each update, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes the model's weights in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(list(self.model.parameters()), list(model.parameters()), self.updates)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates += 1
