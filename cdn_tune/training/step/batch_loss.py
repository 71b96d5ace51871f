"""The training loss of a batch: forward pass in a format, losses in float32."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from cdn_tune.data.dataset import Batch
from cdn_tune.model.family import MomentModel
from cdn_tune.training.step.precision import autocast


def unwrapped(model: nn.Module) -> MomentModel:
    """Returns the network that is wrapped for several workers or compiled, or that is not wrapped at all."""
    return cast(MomentModel, getattr(model, "module", model))


def batch_loss(model: nn.Module, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    """Returns the loss of some queries and its parts, means over them, float32 [1 + parts].

    Args:
        model: A family's network, possibly wrapped; its `loss_names` are the parts.
        batch: The queries, on the model's device.
        dtype: Format of the forward pass.
    """
    family = unwrapped(model)
    with autocast(batch.durations.device, dtype):
        output = model(*family.inputs_of(batch))
    total, parts = family.loss(output, batch)
    return torch.stack([total, *(parts[name] for name in family.loss_names)])
