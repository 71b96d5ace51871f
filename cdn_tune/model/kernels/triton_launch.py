"""Launches the Triton kernels: mixing, the products, their ends and gradients. Imported only where Triton is installed.

Shape letters: as in `triton_kernels`; H shares that a sum was computed in.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from cdn_tune.model.kernels.triton_kernels import (
    convolve_kernel,
    gate_kernel,
    kernels_gradient_kernel,
    mix_kernel,
    unmix_kernel,
)

_HOPPER = (9, 0)
# BLOCK: weights that a program holds of each expert. Fused multiply-adds are asked for, or Triton warns of its default.
MIX_META: dict[str, Any] = {"BLOCK": 1024, "num_warps": 8, "enable_fp_fusion": True}
GATE_META: dict[str, Any] = {"ROWS": 64, "COLUMNS": 64, "num_warps": 4, "enable_fp_fusion": True}
UNMIX_ROWS = 32  # samples whose gradients a program of the mixture's gradient holds at once: what registers take
# Products of float32 as the sum of six of bfloat16, which tensor cores compute; from this version of Triton on.
EXACT = "bf16x6" if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 5) else "ieee"
_PLAIN_DEPTH = 16  # of a tile of float32 products without tensor cores: what registers take
_SPLITS = (1, 2, 4)


class Ending(NamedTuple):
    """What a product adds and multiplies before it stores its result; then ReLU.

    Attributes:
        bias: Added to all cells [B, C].
        added: Maps that are added [B, S, S, C], contiguous; None if nothing is.
        factors: A factor per cell [S, S], float32, contiguous.
    """

    bias: Tensor
    added: Tensor | None
    factors: Tensor


class Tile(NamedTuple):
    """How a product is cut: the tile of the result a program computes, and how it goes about it."""

    rows: int
    columns: int
    depth: int  # of the sum, at a turn
    warps: int
    stages: int  # turns whose operands are under way
    split: int = 1  # programs among which the sum is shared out


def mix(weight: Tensor, mixture: Tensor, out: Tensor, reverse: bool = False) -> Tensor:
    """Writes kernels [B, T, C, C] (tap, out, in; of any strides but the last, 1) mixed from experts [T, E, C, C].

    Args:
        weight: Experts' kernels, contiguous.
        mixture: Mixture weights [B, E], float32, contiguous.
        out: Where to.
        reverse: Whether taps are written in reverse.
    """
    taps, experts, outputs, inputs = weight.shape
    grid = (triton.cdiv(outputs * inputs, MIX_META["BLOCK"]), taps)
    with torch.cuda.device_of(weight):  # type: ignore[no-untyped-call]
        mix_kernel[grid](
            weight,
            mixture,
            out,
            len(mixture),
            outputs * inputs,
            *out.stride()[:3],
            INPUTS=inputs,
            EXPERTS=experts,
            PADDED=triton.next_power_of_2(experts),
            REVERSED=reverse,
            **MIX_META,
        )
    return out


def unmix(weight: Tensor, mixture: Tensor, grad: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    """Returns the gradients of experts' kernels [T, E, C, C] and of the mixture [B, E], float32.

    Args:
        weight: Experts' kernels, contiguous.
        mixture: Mixture weights [B, E], float32, contiguous.
        grad: Gradient of mixed kernels [H B, T, C, C], of any strides but the last, 1; its shares are added.
        exact: Whether products are as exact as float32; else they are rounded to TensorFloat-32.
    """
    taps, experts, outputs, inputs = weight.shape
    shares = mixture.repeat(len(grad) // len(mixture), 1)
    weight_grad = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    programs = 2 * processors(weight.device)
    mixture_grads: list[Tensor] = []
    with torch.cuda.device_of(weight):  # type: ignore[no-untyped-call]
        for first in range(0, len(grad), UNMIX_ROWS):
            some = grad[first : first + UNMIX_ROWS]
            part = torch.empty(programs, len(some), experts, dtype=torch.float32, device=weight.device)
            unmix_kernel[(programs,)](
                weight,
                shares[first:],
                some,
                weight_grad,
                part,
                len(some),
                taps,
                outputs * inputs,
                *some.stride()[:3],
                INPUTS=inputs,
                EXPERTS=experts,
                ROWS=max(16, triton.next_power_of_2(len(some))),
                PADDED=max(16, triton.next_power_of_2(experts)),
                ADD=first > 0,
                **unmix_meta(exact),
            )
            mixture_grads.append(part.sum(dim=0))
    return weight_grad, torch.cat(mixture_grads).view(-1, *mixture.shape).sum(dim=0)


def convolve(
    maps: Tensor,
    kernels: Tensor,
    exact: bool,
    backward: bool = False,
    cells: Tensor | None = None,
    tile: Tile | None = None,
    ending: Ending | None = None,
) -> Tensor:
    """Returns maps [B, S, S, C] convolved each with its own kernel; all contiguous.

    Args:
        maps: Maps [B, S, S, C]; if `backward`, gradients of the output.
        kernels: Kernels [B, T, C, C] (tap, out, in).
        exact: Whether float32 is multiplied as such, and not as TensorFloat-32.
        backward: Whether the gradient of the input is returned instead.
        cells: The cells to compute [n], row by row, int32; others are 0. All if None.
        tile: How to cut it; as `product_tile` chooses if None.
        ending: What follows for these cells; the sum is not shared out then, and the result float32.
    """
    batch, side, _, channels = maps.shape
    count = side * side if cells is None else len(cells)
    tile = tile or product_tile(maps, count)
    tile = tile if ending is None else tile._replace(split=1)
    bias, added, factors = ending or (maps, None, maps)
    wide = tile.split > 1 or ending is not None
    new = torch.empty if cells is None else torch.zeros
    parts = new(tile.split, *maps.shape, dtype=torch.float32 if wide else maps.dtype, device=maps.device)
    tiles = triton.cdiv(count, tile.rows) * triton.cdiv(channels, tile.columns)
    with torch.cuda.device_of(maps):  # type: ignore[no-untyped-call]
        convolve_kernel[(tiles, batch, tile.split)](
            maps,
            kernels,
            parts,
            maps if cells is None else cells,
            count,
            bias,
            maps if added is None else added,
            factors,
            SIDE=side,
            CHANNELS=channels,
            KERNEL=math.isqrt(kernels.shape[1]),
            BACKWARD=backward,
            SPLIT=tile.split,
            LISTED=cells is not None,
            EPILOGUE=ending is not None,
            RESIDUAL=added is not None,
            **product_meta(tile, exact),
        )
    return parts[0] if tile.split == 1 else parts.sum(dim=0).to(maps.dtype)


def gate(grad: Tensor, out: Tensor, factors: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradient before an ending, as float32 and in the format of products, and that of the bias [B, C].

    Args:
        grad: Gradient of the result [B, S, S, C], contiguous.
        out: The result, float32, contiguous.
        factors: As of the ending.
        dtype: The format of products.
    """
    batch, side, _, channels = out.shape
    gated = torch.empty_like(out)
    rounded = gated if dtype == gated.dtype else torch.empty_like(out, dtype=dtype)
    rows, columns = (triton.cdiv(size, GATE_META[name]) for size, name in ((side**2, "ROWS"), (channels, "COLUMNS")))
    sums = torch.empty(batch, rows, channels, dtype=torch.float32, device=out.device)
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        gate_kernel[(rows, columns, batch)](
            grad, out, factors, gated, rounded, sums, CELLS=side**2, CHANNELS=channels, **GATE_META
        )
    return gated, rounded, sums.sum(dim=1)


def kernels_gradient(
    maps: Tensor, grad: Tensor, kernel: int, exact: bool, cells: Tensor | None = None, tile: Tile | None = None
) -> Tensor:
    """Returns the gradient of kernels [H B, T, C, C] (tap, out, in), H shares to be added, of maps [B, S, S, C].

    Arguments are as those of `convolve`; `grad` is the gradient of the output, and taken for 0 outside of `cells`.
    """
    batch, side, _, channels = maps.shape
    tile = tile or gradient_tile(maps)
    count, meta = side * side if cells is None else len(cells), product_meta(tile, exact)
    out = torch.empty(tile.split * batch, kernel**2, channels, channels, dtype=maps.dtype, device=maps.device)
    tiles = kernel**2 * triton.cdiv(channels, tile.rows) * triton.cdiv(channels, tile.columns)
    with torch.cuda.device_of(maps):  # type: ignore[no-untyped-call]
        kernels_gradient_kernel[(tiles, batch, tile.split)](
            maps,
            grad,
            out,
            maps if cells is None else cells,
            count,
            SIDE=side,
            CHANNELS=channels,
            KERNEL=kernel,
            LISTED=cells is not None,
            TURNS=_turns(side * side, count, meta["DEPTH"] * tile.split),
            **meta,
        )
    return out


def product_tile(maps: Tensor, cells: int) -> Tile:
    """Returns the tile of `convolve`: as large as registers allow, and enough programs to occupy the card.

    Args:
        maps: Maps [B, S, S, C].
        cells: How many of each are computed.
    """
    batch, _, _, channels = maps.shape
    many = processors(maps.device) * 9 // 10
    if maps.dtype == torch.float32:
        return Tile(128, 128, 32, 8, 3)
    if channels < 128 or cells <= 64:
        return Tile(64, 64, 64, 4, 3)
    high = triton.cdiv(cells, 128) * batch
    if _is_hopper(maps.device) and channels >= 256 and high * triton.cdiv(channels, 256) >= many:
        return Tile(128, 256, 64, 8, 3)
    programs = high * triton.cdiv(channels, 128)
    split = next((each for each in _SPLITS if programs * each >= many), _SPLITS[-1])
    return Tile(128, 128, 64, 8, 3, split)


def gradient_tile(maps: Tensor) -> Tile:
    """Returns the tile of `kernels_gradient`."""
    channels = maps.shape[3]
    if maps.dtype == torch.float32:
        return Tile(128, 128, 32, 8, 3)
    if channels < 128:
        return Tile(64, 64, 64, 4, 3)
    if _is_hopper(maps.device) and channels >= 256:
        return Tile(128, 256, 64, 8, 3)
    return Tile(128, 128, 64, 8, 3)


def _turns(cells: int, count: int, at_once: int) -> int:
    """Returns in how many turns some of the cells are summed over: in eighths of those that all of them take.

    So few kernels are compiled, whatever their numbers.
    """
    whole, some = (-(-each // at_once) for each in (cells, count))
    eighth = max(1, whole // 8)
    return -(-some // eighth) * eighth


def processors(device: torch.device) -> int:
    """Returns the number of multiprocessors; 1 of a CPU, on which Triton's interpreter runs."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == _HOPPER


def unmix_meta(exact: bool) -> dict[str, Any]:
    """Returns the constants and options of the mixture's gradient: three products of TensorFloat-32 make a float32."""
    if exact:
        return {"BLOCK": 64, "PRECISION": "tf32x3", "num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}
    return {"BLOCK": 128, "PRECISION": "tf32", "num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}


def product_meta(tile: Tile, exact: bool) -> dict[str, Any]:
    """Returns the constants and options of a product."""
    return {
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "DEPTH": min(tile.depth, _PLAIN_DEPTH) if exact and EXACT == "ieee" else tile.depth,
        "PRECISION": EXACT if exact else "tf32",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": True,
    }
