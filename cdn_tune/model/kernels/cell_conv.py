"""Convolution of the temporal map with kernels given by tap: one for all samples, or mixed for each.

Shape letters: B batch, C channels, S clips, E experts, K kernel size.
"""

import math
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from cdn_tune.model.kernels.epilogue import Epilogue
from cdn_tune.model.kernels.mixed_conv import mixed_conv
from cdn_tune.model.kernels.needed import Needed
from cdn_tune.model.kernels.products import PUBLISHED
from cdn_tune.model.kernels.sample_conv import sample_conv
from cdn_tune.model.kernels.tiles import tiling

# Tiled convolution pays where kernels are large: below this product of channels and kernel size transforms cost more.
_MIN_SIZE = 1024
_TILED_KERNELS = (3, 5, 7)
# Tiles of 4 x 4 need fewer multiplications than of 1 x 4, but dearer kernels: they pay from so many per kernel on.
_MANY_TILES = 48
# Mixed kernels of more elements than this are not kept for the backward pass.
_KEPT = 1 << 22


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mixture: Tensor | None = None,
    needed: Needed | None = None,
    product: str = PUBLISHED,
    epilogue: Epilogue | None = None,
) -> Tensor:
    """Convolves maps, with zeros around them, and ends the layer.

    On a CPU, large convolutions run in tiles (see `mixed_conv`), others as a grouped convolution; on a GPU, those with
    mixed kernels run as `product` says (see `sample_conv`).

    Args:
        x: Maps [B, C, S, S].
        weight: Kernels by tap [K², E, C, C] (tap, expert, out, in).
        bias: Biases [E, C].
        mixture: Mixture weights per sample [B, E]; None where a single expert serves all samples.
        needed: Output cells that are needed; what others hold is undefined. All by default.
        product: How a GPU multiplies mixed kernels, a name in `products.PRODUCTS`.
        epilogue: The end of the layer; none by default.

    Returns:
        Maps [B, C, S, S].
    """
    if mixture is not None and x.device.type == "cuda":
        return sample_conv(x, weight, mixture, product, needed, mixture @ bias, epilogue)
    out = _convolved(x, weight, bias, mixture, needed)
    return out if epilogue is None else epilogue.after(out, x)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, mixture: Tensor | None, needed: Needed | None) -> Tensor:
    """Convolves with one kernel for all samples, or on a CPU."""
    kernel = math.isqrt(len(weight))
    out_bias = bias[0] if mixture is None else mixture @ bias  # [C] or [B, C]
    if _in_tiles(x, kernel):
        batch, channels, size, _ = x.shape
        many = size * size // 16 * (batch if mixture is None else 1) >= _MANY_TILES
        tile = (2, 2) if kernel == 7 else (4, 4) if many else (1, 4)
        where = torch.ones(size, size, dtype=torch.bool) if needed is None else needed.mask
        rows = x.permute(0, 2, 3, 1).reshape(batch, size * size, channels)
        out = mixed_conv(rows, weight, mixture, tiling(where, kernel, tile)).to(x.dtype)
        out = out + (out_bias if mixture is None else out_bias[:, None]).to(x.dtype)
        return out.view(batch, size, size, channels).permute(0, 3, 1, 2)
    if mixture is None:
        taps = weight[:, 0].permute(1, 2, 0).reshape(*weight.shape[2:], kernel, kernel)  # [C, C, K, K]
        return functional.conv2d(x, taps, out_bias, padding=kernel // 2)
    return _grouped(x, weight, out_bias, mixture, kernel)


def _in_tiles(x: Tensor, kernel: int) -> bool:
    eager = x.device.type == "cpu" and not torch.compiler.is_compiling()
    return eager and kernel in _TILED_KERNELS and x.shape[1] * kernel >= _MIN_SIZE


def _grouped(x: Tensor, weight: Tensor, bias: Tensor, mixture: Tensor, kernel: int) -> Tensor:
    """Mixes kernels and convolves each sample with its own, as one group each; mixes again in the backward pass."""
    batch, channels, *size = x.shape

    def mix(mixture: Tensor, weight: Tensor) -> Tensor:
        """Mixes kernels tap by tap: no copy of the experts."""
        taps = torch.bmm(mixture.expand(len(weight), -1, -1), weight.flatten(2))  # [K², B, C C]; @ would keep a copy
        return taps.permute(1, 2, 0).reshape(batch * channels, channels, kernel, kernel)

    kernels = mix(mixture, weight)
    kept = (mixture.detach(), weight.detach())

    def pack(tensor: Tensor) -> Tensor | torch.dtype:
        return tensor.dtype if tensor.shape == kernels.shape else tensor

    def unpack(saved: Tensor | torch.dtype) -> Tensor:
        return mix(*kept).to(saved) if isinstance(saved, torch.dtype) else saved

    forget = kernels.numel() > _KEPT and not torch.compiler.is_compiling()
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack) if forget else nullcontext():
        out = functional.conv2d(
            x.reshape(1, batch * channels, *size), kernels, bias.flatten(), padding=kernel // 2, groups=batch
        )
    return out.view(batch, channels, *size)
