"""Number formats: what `auto` means here, and the autocast that goes with it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


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
    """Lets GPUs round float32 to TensorFloat-32 in matrix products and convolutions, or not; for the whole process.

    Always set: a process that trains one trial after the other would keep what the last one chose, and convolutions are
    rounded unless one objects.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
