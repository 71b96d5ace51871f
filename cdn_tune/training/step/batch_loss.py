"""The training loss of a batch, and the number format of the forward pass."""

from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import nn

from cdn_tune.data.dataset import Batch
from cdn_tune.model.family import MomentModel


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Returns the format in which the model computes; weights and losses stay float32.

    Args:
        name: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: Where the model computes.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Returns the context in which the model's forward pass runs."""
    context: AbstractContextManager[None] = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
    return context


def use_tf32(allowed: bool) -> None:
    """Sets whether GPUs round float32 to TensorFloat-32 in matrix products and convolutions, for the whole process.

    Called for every trial: the process may have trained another one before, and torch rounds convolutions by default.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def unwrapped(model: nn.Module) -> MomentModel:
    """Returns the network within its wrapper for several workers or its compiled form, or itself if it has neither."""
    return cast(MomentModel, getattr(model, "module", model))


def batch_loss(model: nn.Module, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    """Returns the loss of some queries and its parts, means over them, float32 [1 + parts].

    Args:
        model: A family's network, possibly wrapped; its `loss_names` are the parts.
        batch: The queries, on the model's device.
        dtype: Format of the forward pass; losses are computed in float32.
    """
    family = unwrapped(model)
    with autocast(batch.durations.device, dtype):
        output = model(*family.inputs_of(batch))
    total, parts = family.loss(output, batch)
    return torch.stack([total, *(parts[name] for name in family.loss_names)])
