"""Convolution with a kernel per sample, mixed from experts, on a GPU.

All kernels of a few samples are mixed in one product. Small maps, and all in plain float32, are then multiplied as
matrices, one row per cell with all that its kernel sees; other maps are convolved one by one. Nothing of that is kept:
the backward pass does it again.

Shape letters: B batch, b some of its samples, C channels, S clips, E experts, K kernel size; W = S + K - 1 cells a row
of a map with margins.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

# Elements of the mixed kernels, or of the rows, that lie in memory at once; those of one sample at least.
_AT_ONCE = 1 << 26


def sample_conv(x: Tensor, weight: Tensor, mixture: Tensor) -> Tensor:
    """Returns maps [B, C, S, S], channels last, each convolved with its mixed kernel, in autocast's format.

    Args:
        x: Maps [B, C, S, S].
        weight: Experts' kernels [K², E, C, C] (tap, expert, out, in).
        mixture: Mixture weights per sample [B, E].
    """
    return _convolve(x, weight, mixture)


def samples_at_once(channels: int, size: int, kernel: int) -> int:
    """Returns how many samples' mixed kernels, and rows of maps [C, S, S], lie in memory together."""
    return max(1, _AT_ONCE // (kernel**2 * channels * max(channels, (size + kernel - 1) ** 2)))


def compiled(module: nn.Module) -> nn.Module:
    """Compiles a module, but for these convolutions: few, large products, nothing to fuse and much to unroll.

    They are left out here and not where they are written: the compiler takes seconds to load.
    """
    global _convolve
    _convolve = torch.compiler.disable(_in_autocasts_format)  # type: ignore[no-untyped-call]
    return cast(nn.Module, torch.compile(module))


def _in_autocasts_format(x: Tensor, weight: Tensor, mixture: Tensor) -> Tensor:
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        return _apply(x.to(dtype), weight, mixture.to(dtype))


_convolve = _in_autocasts_format


class _SampleConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mixture: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, mixture)
        experts = _experts(weight, x.dtype)
        kernel = math.isqrt(len(weight))
        multiply = _multiplied if _as_matrices(x) else _convolved
        out = [multiply(x[some], _mixed(mixture[some], experts)) for some in _chunks(x, kernel)]
        return torch.cat(out) if len(out) > 1 else out[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, mixture = ctx.saved_tensors
        experts = _experts(weight, x.dtype)
        kernel = math.isqrt(len(weight))
        gradients = _multiplied_gradients if _as_matrices(x) else _convolved_gradients
        weight_grad = torch.empty_like(weight)
        x_grads, mixture_grads = [], []
        for some in _chunks(x, kernel):
            x_grad, kernels_grad = gradients(x[some], _mixed(mixture[some], experts), grad[some])
            kernels_grad = kernels_grad.flatten(1)  # [b, C K² C]
            x_grads.append(x_grad)
            mixture_grads.append(kernels_grad @ experts.flatten(1).T)
            part = (mixture[some].T @ kernels_grad).view_as(experts).permute(2, 0, 1, 3)
            weight_grad = weight_grad.add_(part) if some.start else weight_grad.copy_(part)
        return torch.cat(x_grads), weight_grad, torch.cat(mixture_grads)


_apply = cast(Callable[[Tensor, Tensor, Tensor], Tensor], _SampleConv.apply)


def _as_matrices(x: Tensor) -> bool:
    """Whether maps are multiplied as matrices: small ones, and where convolutions in plain float32 are slow."""
    exact = x.dtype.itemsize >= 4 and not torch.backends.cudnn.allow_tf32
    return exact or x.shape[2] * x.shape[3] <= x.shape[1]


def _chunks(x: Tensor, kernel: int) -> Iterator[slice]:
    """Yields samples whose kernels lie in memory together."""
    batch, channels, size, _ = x.shape
    many = samples_at_once(channels, size, kernel)
    return (slice(first, first + many) for first in range(0, batch, many))


def _experts(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Turns experts' kernels around, from [K², E, C, C] (tap, expert, out, in) to [E, C, K², C]."""
    return weight.permute(1, 2, 0, 3).to(dtype, memory_format=torch.contiguous_format).contiguous()


def _mixed(mixture: Tensor, experts: Tensor) -> Tensor:
    """Mixes kernels for samples [b, E]: [b, C, K², C] (out, tap, in)."""
    return (mixture @ experts.flatten(1)).view(len(mixture), *experts.shape[1:])


def _multiplied(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolves maps [b, C, S, S] with kernels [b, C, K², C] as one product of matrices per sample."""
    out = torch.bmm(_rows(x, math.isqrt(kernels.shape[2])), kernels.flatten(2).transpose(1, 2))  # [b, S², C]
    return out.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


def _multiplied_gradients(x: Tensor, kernels: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of maps and kernels."""
    kernel, size, channels = math.isqrt(kernels.shape[2]), x.shape[2], x.shape[1]
    kernels_grad = torch.bmm(grad.flatten(2), _rows(x, kernel))  # [b, C, K² C]
    # What each cell of the output, and of its margins of zeros, gives to each cell under its kernel: [b, W², K² C].
    given = torch.bmm(_padded(grad, kernel // 2).flatten(1, 2), kernels.flatten(2))
    cell, row = kernel**2 * channels, (size + kernel - 1) * kernel**2 * channels
    # The tap (K-1-i, K-1-j) of the output cell i rows down and j columns right, for all i and j: [b, S, S, K, K, C].
    shape = (len(x), size, size, kernel, kernel, channels)
    stride = (given.stride(0), row, cell, row - kernel * channels, cell - channels, 1)
    taken = given.as_strided(shape, stride, given.storage_offset() + cell - channels)
    return taken.sum(dim=(3, 4)).permute(0, 3, 1, 2), kernels_grad


def _convolved(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolves maps [b, C, S, S] one by one with kernels [b, C, K², C]."""
    pad = math.isqrt(kernels.shape[2]) // 2
    return torch.cat(
        [functional.conv2d(one[None], taps, padding=pad) for one, taps in zip(x, _as_torch(kernels), strict=True)]
    )


def _convolved_gradients(x: Tensor, kernels: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of maps and kernels."""
    pad = math.isqrt(kernels.shape[2]) // 2
    x_grads, kernels_grad = [], torch.empty_like(kernels)
    for one, taps, one_grad, target in zip(x, _as_torch(kernels), grad, _as_torch(kernels_grad), strict=True):
        x_grads.append(conv2d_input(one[None].shape, taps, one_grad[None], padding=pad))  # type: ignore[no-untyped-call]
        kernel_grad = conv2d_weight(one[None], taps.shape, one_grad[None], padding=pad)  # type: ignore[no-untyped-call]
        target.copy_(kernel_grad)
    return torch.cat(x_grads), kernels_grad


def _as_torch(kernels: Tensor) -> Tensor:
    """Shows kernels [b, C, K², C] as torch orders them, channels last in memory: [b, C, C, K, K]."""
    size = math.isqrt(kernels.shape[2])
    return kernels.view(*kernels.shape[:2], size, size, -1).permute(0, 1, 4, 2, 3)


def _padded(x: Tensor, pad: int) -> Tensor:
    """Returns maps [b, C, S, S] cell by cell, with margins of zeros: [b, W, W, C]."""
    return functional.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad)).contiguous()


def _rows(x: Tensor, kernel: int) -> Tensor:
    """Returns what the kernel sees at each cell of maps [b, C, S, S]: [b, S², K² C]."""
    batch, channels, size, _ = x.shape
    padded = _padded(x, kernel // 2)
    _, row, cell, one = padded.stride()
    seen = padded.as_strided((batch, size, size, kernel, kernel, channels), (*padded.stride()[:3], row, cell, one))
    return seen.reshape(batch, size**2, kernel**2 * channels)
