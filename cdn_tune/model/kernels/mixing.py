"""Kernels mixed from experts for each sample, and the gradients of the mixture: by Triton on a GPU, else by torch.

Experts' weights stay where checkpoints have them, tap by tap, and are never turned around: mixed kernels are written in
the order in which they will be read.

Shape letters: B samples, C channels, E experts, K kernel size, T = K² taps, R samples times shares of a sum.
"""

import importlib.util
import logging
from functools import cache
from typing import Literal

import torch
from torch import Tensor

# How mixed kernels lie in memory, from the outermost to the innermost: (sample, tap, out, in), (sample, out, tap, in),
# or as `torch` has them (sample, out, in, tap).
Order = Literal["tap", "out", "torch"]
_WITHIN = 1e-5  # relative error of sums of float32 products
_LONGEST = 160  # characters of a library's own message
_LOG = logging.getLogger(__name__)


def mix(weight: Tensor, mixture: Tensor, dtype: torch.dtype, order: Order = "tap", reverse: bool = False) -> Tensor:
    """Returns mixed kernels [B, T, C, C] (tap, out, in), rounded once to `dtype`.

    Args:
        weight: Experts' kernels [T, E, C, C].
        mixture: Mixture weights per sample [B, E], in float32 at least.
        dtype: Type of the result.
        order: How it lies in memory, whatever its shape.
        reverse: Whether taps are in reverse order.
    """
    out = _empty(len(mixture), weight, dtype, order)
    if _by_triton(weight):
        from cdn_tune.model.kernels import triton_launch

        direct = out if out.stride(3) == 1 else _empty(len(mixture), weight, dtype, "tap")
        triton_launch.mix(weight.contiguous(), mixture.contiguous(), direct, reverse)
        return out if direct is out else out.copy_(direct)
    return out.copy_(_mixed(weight, mixture, reverse))


def unmix(weight: Tensor, mixture: Tensor, grad: Tensor, exact: bool = True) -> tuple[Tensor, Tensor]:
    """Returns the gradients of experts' kernels [T, E, C, C] and of the mixture [B, E], in float32 at least.

    Args:
        weight: Experts' kernels [T, E, C, C].
        mixture: Mixture weights per sample [B, E], in float32 at least.
        grad: Gradient of mixed kernels [R, T, C, C], R a multiple of B: shares of samples that are added.
        exact: Whether products of float32 have to be as exact; else they may be rounded to TensorFloat-32.
    """
    if _by_triton(weight):
        from cdn_tune.model.kernels import triton_launch

        grad = grad if grad.stride(3) == 1 else grad.contiguous()
        return triton_launch.unmix(weight.contiguous(), mixture.contiguous(), grad, exact)
    return _unmixed(weight, mixture, grad)


def triton_installed() -> bool:
    """Returns whether the package is there; it is not imported."""
    return importlib.util.find_spec("triton") is not None


@cache
def triton_fault(device: torch.device) -> str | None:
    """Returns why a device does not mix by Triton; None if it does.

    On a GPU a few random kernels are mixed once, and compared: a compiler, or a card's support, may be missing. That is
    logged in one line.
    """
    if device.type != "cuda":
        return "it computes on GPUs alone"
    if not triton_installed():
        return "it is not installed"
    try:
        errors = _errors(device)
    except Exception as error:  # of the compiler, the driver, another version of Triton
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST]}"
    else:
        if all(error < _WITHIN for error in errors):
            return None
        found = "its kernels are wrong there, by " + ", ".join(f"{error:.1e}" for error in errors)
    _LOG.warning("Triton is not used on %s, torch is instead: %s", torch.cuda.get_device_name(device), found)
    return found


def _errors(device: torch.device) -> list[float]:
    """Returns the relative errors of Triton's mixing and of its two gradients, on random kernels."""
    from cdn_tune.model.kernels import triton_launch

    with torch.random.fork_rng(devices=[device]):
        weight = torch.randn(9, 3, 40, 40, device=device)
        mixture, grad = torch.randn(5, 3, device=device), torch.randn(5, 9, 40, 40, device=device)
    double = weight.double(), mixture.double()
    expected = (_mixed(*double), *_unmixed(*double, grad.double()))
    mixed = triton_launch.mix(weight, mixture, torch.full_like(grad, torch.nan))
    found = (mixed, *triton_launch.unmix(weight, mixture, grad, exact=True))
    return [relative_error(mine, theirs) for mine, theirs in zip(found, expected, strict=True)]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Returns the length of the difference by that of what is expected; NaN where something found is not finite."""
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm())


def _by_triton(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and triton_fault(weight.device) is None


def _empty(batch: int, weight: Tensor, dtype: torch.dtype, order: Order) -> Tensor:
    taps, _, outputs, inputs = weight.shape
    if order == "tap":
        return weight.new_empty(batch, taps, outputs, inputs, dtype=dtype)
    if order == "out":
        return weight.new_empty(batch, outputs, taps, inputs, dtype=dtype).transpose(1, 2)
    return weight.new_empty(batch, outputs, inputs, taps, dtype=dtype).permute(0, 3, 1, 2)


def _mixed(weight: Tensor, mixture: Tensor, reverse: bool = False) -> Tensor:
    """Returns mixed kernels [B, T, C, C], tap by tap, so that experts' weights are not copied."""
    kernels = torch.bmm(mixture.expand(len(weight), -1, -1), weight.flatten(2))  # [T, B, C C]
    return (kernels.flip(0) if reverse else kernels).view(len(weight), -1, *weight.shape[2:]).transpose(0, 1)


def _unmixed(weight: Tensor, mixture: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    if len(grad) > len(mixture):
        grad = grad.to(weight.dtype).reshape(-1, len(mixture), *grad.shape[1:]).sum(dim=0)  # [B, T, C, C]
    grads = weight.new_empty(len(weight), len(mixture), *weight.shape[2:]).copy_(grad.transpose(0, 1)).flatten(2)
    weight_grad = torch.bmm(mixture.T.expand(len(weight), -1, -1), grads).view_as(weight)
    return weight_grad, torch.bmm(grads, weight.flatten(2).transpose(1, 2)).sum(dim=0)
