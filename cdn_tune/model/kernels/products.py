"""The ways in which maps are multiplied with kernels of their own: one table, of which a GPU uses the fastest.

Shape letters: B samples, C channels, S clips, E experts, K kernel size, T = K² taps, R samples times shares of a sum.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from cdn_tune.model.kernels.epilogue import Epilogue
from cdn_tune.model.kernels.mixing import Order
from cdn_tune.model.kernels.needed import Needed

_FEW = 0.9  # of all cells: from there on a list of those that are needed saves nothing


class MixedShape(NamedTuple):
    """The shape of a convolution with mixed kernels, whatever the batch."""

    channels: int
    kernel: int
    experts: int
    size: int  # clips S of the map

    def __str__(self) -> str:
        return f"C{self.channels} K{self.kernel} E{self.experts} S{self.size}"


class Product(NamedTuple):
    """A way to multiply, with the kernels as it reads them.

    Attributes:
        multiply: Maps [B, C, S, S], kernels [B, T, C, C] (tap, out, in) and the cells that are needed, if not all, to
            convolved maps [B, C, S, S].
        gradients: Maps, kernels, the gradient of the convolved maps (0 where not needed) and the needed cells to the
            gradients of maps and kernels [R, T, C, C].
        forward: Order of the kernels that `multiply` reads.
        backward: Order of those that `gradients` reads.
        reverse: Whether it reads taps in reverse.
        whole: Whether training multiplies all samples at once and keeps their kernels.
        ends: Multiplies and ends the layer (`Epilogue`) before its result is stored, which is float32: given the
            arguments of `multiply`, a bias [B, C], the layer's maps and its end. None if it cannot.
    """

    multiply: Callable[[Tensor, Tensor, Needed | None], Tensor]
    gradients: Callable[[Tensor, Tensor, Tensor, Needed | None], tuple[Tensor, Tensor]]
    forward: Order
    backward: Order
    reverse: bool = False
    whole: bool = False
    ends: Callable[[Tensor, Tensor, Needed | None, Tensor, Tensor, Epilogue], Tensor] | None = None


def is_exact(dtype: torch.dtype) -> bool:
    """Returns whether a GPU computes in float32 as such: in no shorter format, and not rounded to TensorFloat-32."""
    return dtype.itemsize >= 4 and not torch.backends.cudnn.allow_tf32


def _grouped(x: Tensor, kernels: Tensor, _: Needed | None = None) -> Tensor:
    """Convolves as published: one convolution, of a group per sample."""
    taps = _as_torch(kernels).flatten(0, 1)
    out = functional.conv2d(_as_groups(x), taps, padding=taps.shape[3] // 2, groups=len(x))
    return out.view(x.shape)


def _grouped_gradients(x: Tensor, kernels: Tensor, grad: Tensor, _: Needed | None = None) -> tuple[Tensor, Tensor]:
    taps, one, one_grad = _as_torch(kernels).flatten(0, 1), _as_groups(x), _as_groups(grad)
    how = {"padding": taps.shape[3] // 2, "groups": len(x)}
    x_grad = conv2d_input(one.shape, taps, one_grad, **how)  # type: ignore[no-untyped-call]
    kernels_grad = conv2d_weight(one, taps.shape, one_grad, **how)  # type: ignore[no-untyped-call]
    return x_grad.view(x.shape), kernels_grad.view(len(x), -1, *kernels_grad.shape[1:]).flatten(3).permute(0, 3, 1, 2)


def _as_groups(x: Tensor) -> Tensor:
    """Returns maps [B, C, S, S] as one map [1, B C, S, S]."""
    return x.reshape(1, -1, *x.shape[2:])


def _as_torch(kernels: Tensor) -> Tensor:
    """Returns kernels [B, T, C, C] in the shape that torch has [B, C, C, K, K]; in "torch" order a view."""
    size = math.isqrt(kernels.shape[1])
    shape = (len(kernels), *kernels.shape[2:], size, size)
    return kernels.permute(0, 2, 3, 1).view(shape)


def _of_rows(x: Tensor, kernels: Tensor, _: Needed | None = None) -> Tensor:
    """Multiplies matrices: a row per cell with all that its kernel sees."""
    rows = _rows(x, math.isqrt(kernels.shape[1]))
    out = torch.bmm(rows, kernels.transpose(1, 2).flatten(2).transpose(1, 2))  # [B, S², C]
    return out.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


def _of_rows_gradients(x: Tensor, kernels: Tensor, grad: Tensor, _: Needed | None = None) -> tuple[Tensor, Tensor]:
    """Given reversed kernels: the gradient of a map is the gradient's own convolution with them, outputs to inputs."""
    taps, kernel = kernels.shape[1], math.isqrt(kernels.shape[1])
    x_grad = torch.bmm(_rows(grad, kernel), kernels.flatten(1, 2))  # [B, S², C]
    cells = grad.permute(0, 2, 3, 1).flatten(1, 2)  # [B, S², C]
    kernels_grad = torch.bmm(cells.transpose(1, 2), _rows(x, kernel))  # [B, C, T C]
    kernels_grad = kernels_grad.view(len(x), -1, taps, x.shape[1]).transpose(1, 2)
    return x_grad.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2), kernels_grad


def _rows(x: Tensor, kernel: int) -> Tensor:
    """Returns what the kernel sees at each cell of maps [B, C, S, S]: [B, S², T C]."""
    batch, channels, size, _ = x.shape
    pad = kernel // 2
    padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad)).contiguous()
    _, row, cell, one = padded.stride()
    seen = padded.as_strided((batch, size, size, kernel, kernel, channels), (*padded.stride()[:3], row, cell, one))
    return seen.reshape(batch, size**2, kernel**2 * channels)


def _one_by_one(x: Tensor, kernels: Tensor, _: Needed | None = None) -> Tensor:
    """Calls a convolution per sample, with kernels that are channels last in memory."""
    taps = _as_torch(kernels)
    return torch.cat(
        [functional.conv2d(one[None], own, padding=own.shape[3] // 2) for one, own in zip(x, taps, strict=True)]
    )


def _one_by_one_gradients(x: Tensor, kernels: Tensor, grad: Tensor, _: Needed | None = None) -> tuple[Tensor, Tensor]:
    x_grads: list[Tensor] = []
    kernels_grad = torch.empty_like(kernels)  # in the order of the kernels
    for one, taps, one_grad, target in zip(x, _as_torch(kernels), grad, _as_torch(kernels_grad), strict=True):
        how = {"padding": taps.shape[3] // 2}
        x_grads.append(conv2d_input(one[None].shape, taps, one_grad[None], **how))  # type: ignore[no-untyped-call]
        target.copy_(conv2d_weight(one[None], taps.shape, one_grad[None], **how))  # type: ignore[no-untyped-call]
    return torch.cat(x_grads), kernels_grad


def _by_triton(x: Tensor, kernels: Tensor, needed: Needed | None = None) -> Tensor:
    """Multiplies in Triton's kernels, which take what a kernel sees from the map itself, at needed cells alone."""
    from cdn_tune.model.kernels import triton_launch

    outputs, _ = _listed(x, needed)
    out = triton_launch.convolve(_channels_last(x), kernels, is_exact(x.dtype), cells=outputs)
    return out.permute(0, 3, 1, 2)


def _by_triton_gradients(
    x: Tensor, kernels: Tensor, grad: Tensor, needed: Needed | None = None
) -> tuple[Tensor, Tensor]:
    from cdn_tune.model.kernels import triton_launch

    maps, grads, exact = _channels_last(x), _channels_last(grad), is_exact(x.dtype)
    outputs, inputs = _listed(x, needed)
    x_grad = triton_launch.convolve(grads, kernels, exact, backward=True, cells=inputs)
    kernels_grad = triton_launch.kernels_gradient(maps, grads, math.isqrt(kernels.shape[1]), exact, outputs)
    return x_grad.permute(0, 3, 1, 2), kernels_grad


def _by_triton_to_the_end(
    x: Tensor, kernels: Tensor, needed: Needed | None, bias: Tensor, maps: Tensor, epilogue: Epilogue
) -> Tensor:
    """Multiplies as Triton's kernels do; adds, gates and scales cells that are in registers yet."""
    from cdn_tune.model.kernels import triton_launch

    outputs, _ = _listed(x, needed)
    added = _channels_last(maps) if epilogue.residual else None
    ending = triton_launch.Ending(bias.contiguous(), added, epilogue.factors)
    out = triton_launch.convolve(_channels_last(x), kernels, is_exact(x.dtype), cells=outputs, ending=ending)
    return out.permute(0, 3, 1, 2)


def gate(grad: Tensor, out: Tensor, epilogue: Epilogue, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what `Product.ends` gets back: the gradient [B, C, S, S] of what is added, of the product, of the bias.

    Args:
        grad: Gradient of the result [B, C, S, S].
        out: The result.
        epilogue: The end.
        dtype: The format in which the product is computed.
    """
    from cdn_tune.model.kernels import triton_launch

    wide, rounded, bias_grad = triton_launch.gate(_channels_last(grad), _channels_last(out), epilogue.factors, dtype)
    return wide.permute(0, 3, 1, 2), rounded.permute(0, 3, 1, 2), bias_grad


def _listed(x: Tensor, needed: Needed | None) -> tuple[Tensor | None, Tensor | None]:
    """Returns the needed cells of output and input, each None where that is nearly all of them."""
    if needed is None:
        return None, None
    few = _FEW * x.shape[2] * x.shape[3]
    outputs, inputs = (each if len(each) < few else None for each in (needed.outputs, needed.inputs))
    return outputs, inputs


def _channels_last(x: Tensor) -> Tensor:
    """Returns maps [B, C, S, S] as [B, S, S, C], contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()


PUBLISHED, TRITON, FUSED = "published", "triton", "fused"
OF_TRITON = (TRITON, FUSED)
PRODUCTS = {
    PUBLISHED: Product(_grouped, _grouped_gradients, "torch", "torch", whole=True),
    "rows": Product(_of_rows, _of_rows_gradients, "out", "tap", reverse=True),
    "cudnn": Product(_one_by_one, _one_by_one_gradients, "out", "out"),
    TRITON: Product(_by_triton, _by_triton_gradients, "tap", "tap"),
    FUSED: Product(_by_triton, _by_triton_gradients, "tap", "tap", ends=_by_triton_to_the_end),
}
