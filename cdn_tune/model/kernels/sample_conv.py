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

from cdn_tune.model.kernels.epilogue import Epilogue
from cdn_tune.model.kernels.mixing import mix, unmix
from cdn_tune.model.kernels.needed import Needed
from cdn_tune.model.kernels.products import PRODUCTS, PUBLISHED, Product, gate, is_exact

# Elements of the mixed kernels, or of the rows, that lie in memory at once; those of one sample at least.
_AT_ONCE = 1 << 28
# Bytes of mixed kernels that a layer keeps for its backward pass, where this reads them as they are; else they are
# mixed again. The published formulation keeps all.
_KEPT = 1 << 28


def sample_conv(
    x: Tensor,
    weight: Tensor,
    mixture: Tensor,
    product: str = PUBLISHED,
    needed: Needed | None = None,
    bias: Tensor | None = None,
    epilogue: Epilogue | None = None,
) -> Tensor:
    """Returns maps [B, C, S, S], each convolved with its mixed kernel, in autocast's format.

    Args:
        x: Maps [B, C, S, S].
        weight: Experts' kernels [T, E, C, C] (tap, expert, out, in).
        mixture: Mixture weights per sample [B, E].
        product: How, a name in `PRODUCTS`.
        needed: Output cells that are needed; what others hold is undefined, and so is what their gradient adds.
        bias: Added to each convolved map [B, C].
        epilogue: The end of a layer with a bias, whose result is returned instead.
    """
    if bias is not None and epilogue is not None and PRODUCTS[product].ends is not None:
        return _convolve(x, weight, mixture, product, needed, bias, epilogue)
    out = _convolve(x, weight, mixture, product, needed)
    out = out if bias is None else out + bias[:, :, None, None].to(out.dtype)
    return out if epilogue is None else epilogue.after(out, x)


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


def _in_autocasts_format(
    x: Tensor,
    weight: Tensor,
    mixture: Tensor,
    product: str,
    needed: Needed | None,
    bias: Tensor | None = None,
    epilogue: Epilogue | None = None,
) -> Tensor:
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        how = (PRODUCTS[product], needed, epilogue, dtype, torch.is_grad_enabled())
        return _apply(x, weight, mixture.to(weight.dtype), bias, *how)


_convolve = _in_autocasts_format


class _SampleConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        mixture: Tensor,
        bias: Tensor | None,
        product: Product,
        needed: Needed | None,
        epilogue: Epilogue | None,
        dtype: torch.dtype,
        recorded: bool,
    ) -> Tensor:
        training = recorded and any(ctx.needs_input_grad)  # the latter tells of leaves, recorded or not
        chunks = list(_chunks(x, weight, whole=product.whole and training))
        maps = x.to(dtype)
        parts: list[Tensor] = []
        for some in chunks:
            kernels = mix(weight, mixture[some], dtype, product.forward)
            if product.ends is None or bias is None or epilogue is None:
                parts.append(product.multiply(maps[some], kernels, needed))
            else:
                parts.append(product.ends(maps[some], kernels, needed, bias[some], x[some], epilogue))
        again = not training or len(chunks) > 1 or not _keeps(product, kernels)
        out = _joined(parts)
        ctx.save_for_backward(maps, weight, mixture, None if again else kernels, out if epilogue else None)
        ctx.product, ctx.needed, ctx.epilogue = product, needed, epilogue
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, mixture, kept, out = ctx.saved_tensors
        product: Product = ctx.product
        weight_grad, x_grads, mixture_grads = None, [], []
        before = bias_grad = None
        if ctx.epilogue is not None:
            before, grad, bias_grad = gate(grad, out, ctx.epilogue, maps.dtype)
        for some in _chunks(maps, weight, product.whole):
            kernels = (
                mix(weight, mixture[some], maps.dtype, product.backward, product.reverse) if kept is None else kept
            )
            x_grad, kernels_grad = product.gradients(maps[some], kernels, grad[some], ctx.needed)
            del kernels
            part, mixture_grad = unmix(weight, mixture[some], kernels_grad, is_exact(maps.dtype))
            weight_grad = part if weight_grad is None else weight_grad.add_(part)
            x_grads.append(x_grad)
            mixture_grads.append(mixture_grad)
        x_grad = _joined(x_grads)
        if before is not None and ctx.epilogue.residual:
            x_grad = before.add_(x_grad)
        return x_grad, weight_grad, torch.cat(mixture_grads), bias_grad, *[None] * 5


_apply = cast(Callable[..., Tensor], _SampleConv.apply)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _chunks(x: Tensor, weight: Tensor, whole: bool) -> Iterator[slice]:
    """Yields samples whose kernels lie in memory together; all of them if `whole`."""
    batch, channels, size, _ = x.shape
    many = batch if whole else samples_at_once(channels, size, math.isqrt(len(weight)))
    return (slice(first, first + many) for first in range(0, batch, many))


def _keeps(product: Product, kernels: Tensor) -> bool:
    same = product.forward == product.backward and not product.reverse
    return product.whole or (same and kernels.nbytes <= _KEPT)
