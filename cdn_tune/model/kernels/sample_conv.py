"""Convolution with a kernel per sample, mixed from experts, on a GPU.

Kernels are mixed (`mixing.py`), multiplied with the maps in one of several ways (`products.py`), and the gradient of
the mixed kernels becomes those of experts and mixture. All ways compute the same; which is the fastest depends on card,
format and shapes, and is measured before a training (`training/kernels/`).

Shape letters: B batch, C channels, S clips, E experts, K kernel size, T = K² taps.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from cdn_tune.model.kernels.mixing import mix, unmix
from cdn_tune.model.kernels.needed import Needed
from cdn_tune.model.kernels.products import PRODUCTS, PUBLISHED, Product, is_exact

# Elements of the mixed kernels, or of the rows, that lie in memory at once; those of one sample at least.
_AT_ONCE = 1 << 28
# Bytes of mixed kernels that a layer keeps for its backward pass, where this reads them as they are; else they are
# mixed again. The published formulation keeps all.
_KEPT = 1 << 28


def sample_conv(
    x: Tensor, weight: Tensor, mixture: Tensor, product: str = PUBLISHED, needed: Needed | None = None
) -> Tensor:
    """Returns maps [B, C, S, S], each convolved with its mixed kernel, in autocast's format.

    Args:
        x: Maps [B, C, S, S].
        weight: Experts' kernels [T, E, C, C] (tap, expert, out, in).
        mixture: Mixture weights per sample [B, E].
        product: How, a name in `PRODUCTS`.
        needed: Output cells that are needed; what others hold is undefined, and so is what their gradient adds.
    """
    return _convolve(x, weight, mixture, product, needed)


def samples_at_once(channels: int, size: int, kernel: int) -> int:
    """Returns how many samples' mixed kernels, and rows of maps [C, S, S], lie in memory together."""
    return max(1, _AT_ONCE // (kernel**2 * channels * max(channels, size**2)))


def compiled(module: nn.Module) -> nn.Module:
    """Compiles a module, but for these convolutions: few, large products, nothing to fuse and much to unroll.

    They are left out here and not where they are written: the compiler takes seconds to load.
    """
    global _convolve
    _convolve = torch.compiler.disable(_in_autocasts_format)  # type: ignore[no-untyped-call]
    return cast(nn.Module, torch.compile(module))


def _in_autocasts_format(x: Tensor, weight: Tensor, mixture: Tensor, product: str, needed: Needed | None) -> Tensor:
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        how = (PRODUCTS[product], needed, torch.is_grad_enabled())
        return _apply(x.to(dtype), weight, mixture.to(weight.dtype), *how)


_convolve = _in_autocasts_format


class _SampleConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        mixture: Tensor,
        product: Product,
        needed: Needed | None,
        recorded: bool,
    ) -> Tensor:
        training = recorded and any(ctx.needs_input_grad)  # the latter tells of leaves, recorded or not
        chunks = list(_chunks(x, weight, whole=product.whole and training))
        out: list[Tensor] = []
        for some in chunks:
            kernels = mix(weight, mixture[some], x.dtype, product.forward)
            out.append(product.multiply(x[some], kernels, needed))
        again = not training or len(chunks) > 1 or not _keeps(product, kernels)
        ctx.save_for_backward(x, weight, mixture, None if again else kernels)
        ctx.product, ctx.needed = product, needed
        return torch.cat(out) if len(out) > 1 else out[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mixture, kept = ctx.saved_tensors
        product: Product = ctx.product
        weight_grad, x_grads, mixture_grads = None, [], []
        for some in _chunks(x, weight, product.whole):
            kernels = mix(weight, mixture[some], x.dtype, product.backward, product.reverse) if kept is None else kept
            x_grad, kernels_grad = product.gradients(x[some], kernels, grad[some], ctx.needed)
            del kernels
            part, mixture_grad = unmix(weight, mixture[some], kernels_grad, is_exact(x.dtype))
            weight_grad = part if weight_grad is None else weight_grad.add_(part)
            x_grads.append(x_grad)
            mixture_grads.append(mixture_grad)
        return torch.cat(x_grads), weight_grad, torch.cat(mixture_grads), None, None, None


_apply = cast(Callable[[Tensor, Tensor, Tensor, Product, Needed | None, bool], Tensor], _SampleConv.apply)


def _chunks(x: Tensor, weight: Tensor, whole: bool) -> Iterator[slice]:
    """Yields samples whose kernels lie in memory together; all of them if `whole`."""
    batch, channels, size, _ = x.shape
    many = batch if whole else samples_at_once(channels, size, math.isqrt(len(weight)))
    return (slice(first, first + many) for first in range(0, batch, many))


def _keeps(product: Product, kernels: Tensor) -> bool:
    same = product.forward == product.backward and not product.reverse
    return product.whole or (same and kernels.nbytes <= _KEPT)
