"""Convolution with a kernel per sample, mixed from experts, on a CPU.

Transformed kernels are mixed block by block of output channels and never kept: the backward pass mixes them again.

Shape letters: B batch, N = S² cells, C channels, E experts, K kernel size, M tile side, P = (M + K - 1)² points, n tiles;
of one block of the work: R output channels, b samples, g kernels (b, or 1 that serves all samples).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from cdn_tune.model.tiles import Tiling
from cdn_tune.model.winograd import Transforms, transforms

_BLOCK = 10 << 20  # elements of a block of kernels
_CACHE = 1 << 14  # columns of a matrix that are transformed at once


def mixed_conv(x: Tensor, weight: Tensor, mixture: Tensor | None, tiles: Tiling) -> Tensor:
    """Convolves maps with mixed kernels, in float32 at least.

    Args:
        x: Maps [B, N, C], one row per cell.
        weight: Experts' kernels [K², E, C, C] (tap, expert, out, in).
        mixture: Mixture weights per sample [B, E]; None where a single expert serves all samples.
        tiles: The tiles to compute.

    Returns:
        Maps [B, N, C]; cells of no tile hold 0.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    mixture = None if mixture is None else mixture.to(dtype)
    return _apply(x.to(dtype).contiguous(), weight.to(dtype), mixture, tiles)


class _MixedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mixture: Tensor | None, tiles: Tiling) -> Tensor:
        ctx.save_for_backward(x, weight, mixture)
        ctx.tiles = tiles
        with torch.autocast(x.device.type, enabled=False):
            return _Work(x, weight, mixture, tiles).forward()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):
            return (*_Work(*ctx.saved_tensors, ctx.tiles).backward(grad.contiguous()), None)


_apply = cast(Callable[[Tensor, Tensor, Tensor | None, Tiling], Tensor], _MixedConv.apply)


class _Work:
    """One convolution, cut into blocks of output channels and chunks of samples.

    What is computed again and again, block by block, is written into the same few buffers: fresh memory costs more than
    the arithmetic.
    """

    def __init__(self, x: Tensor, weight: Tensor, mixture: Tensor | None, tiles: Tiling) -> None:
        self.x, self.weight, self.mixture, self.tiles = x, weight, mixture, tiles
        self.to = Transforms(*(matrix.to(x.dtype) for matrix in transforms(tiles.kernel, tiles.tile)))
        self.points, self.taps = self.to.kernel.shape
        self.channels = x.shape[2]
        self.experts = weight.shape[1]
        # Mixing after the transform costs one transform per expert, mixing before it one per sample.
        self.mix_first = mixture is not None and len(x) <= self.experts
        kernels = len(x) if self.mix_first else self.experts
        rows = max(32, _BLOCK // (self.points * kernels * self.channels) // 32 * 32)
        self.blocks = [slice(first, min(first + rows, self.channels)) for first in range(0, self.channels, rows)]
        size = len(x) if mixture is None else max(1, _BLOCK // (self.points * rows * self.channels))
        self.chunks = [slice(first, min(first + size, len(x))) for first in range(0, len(x), size)]
        self.buffers: dict[str, Tensor] = {}

    def forward(self) -> Tensor:
        values = [self._input_points(chunk) for chunk in self.chunks]
        out = [self.x.new_empty(self._tile_rows(chunk), self.channels) for chunk in self.chunks]
        for block in self.blocks:
            experts = self._experts(block)
            for chunk, value, tile in zip(self.chunks, values, out, strict=True):
                kernels = self._kernels(experts, chunk)  # [P g, R, C]
                product = self._buffer("product", *value.shape[:2], kernels.shape[1])  # [P g, b/g n, R]
                torch.bmm(value, kernels.transpose(1, 2), out=product)
                result = self._buffer("result", len(self.to.output), product.numel() // self.points)
                tile[:, block] = torch.mm(self.to.output, product.view(self.points, -1), out=result).view(len(tile), -1)
        return torch.cat([self._to_cells(chunk, tile) for chunk, tile in zip(self.chunks, out, strict=True)])

    def backward(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        values = [self._input_points(chunk) for chunk in self.chunks]
        tiles = [self._from_cells(grad[chunk], self.tiles.cells) for chunk in self.chunks]  # [M² b n, C] each
        value_grads = [torch.zeros_like(value) for value in values]
        weight_grad = torch.empty_like(self.weight)
        mixture_grad = None if self.mixture is None else torch.zeros_like(self.mixture)
        for block in self.blocks:
            experts = self._experts(block)
            experts_grad = self._buffer("experts_grad", *experts.shape).zero_()
            for chunk, value, value_grad, tile in zip(self.chunks, values, value_grads, tiles, strict=True):
                kernels = self._kernels(experts, chunk)  # [P g, R, C]
                product_grad = self._buffer("product", *value.shape[:2], kernels.shape[1])  # [P g, b/g n, R]
                tile_grad = tile[:, block].reshape(len(self.to.output), -1)
                torch.mm(self.to.output.T, tile_grad, out=product_grad.view(self.points, -1))
                value_grad.baddbmm_(product_grad, kernels)
                kernels_grad = self._buffer("kernels_grad", *kernels.shape)  # [P g, R, C]
                torch.bmm(product_grad.transpose(1, 2), value, out=kernels_grad)
                self._unmix(experts, chunk, kernels_grad, experts_grad, mixture_grad)
            if not self.mix_first:
                experts_grad = self._transform("taps", self.to.kernel.T, experts_grad)
            weight_grad[:, :, block] = experts_grad.view(weight_grad[:, :, block].shape)
        x_grad = [self._scatter(chunk, value_grad) for chunk, value_grad in zip(self.chunks, value_grads, strict=True)]
        return torch.cat(x_grad), weight_grad, mixture_grad

    def _buffer(self, name: str, *shape: int) -> Tensor:
        """Returns memory for one purpose; what it held before is lost."""
        size = math.prod(shape)
        if name not in self.buffers or len(self.buffers[name]) < size:
            self.buffers[name] = self.x.new_empty(size)
        return self.buffers[name][:size].view(shape)

    def _transform(self, name: str, matrix: Tensor, kernels: Tensor) -> Tensor:
        """Applies a transform [j, k] to kernels [k, E, R C], a cacheful at a time: [j, E, R C]."""
        columns = kernels.reshape(len(kernels), -1)
        out = self._buffer(name, len(matrix), columns.shape[1])
        for first in range(0, columns.shape[1], _CACHE):
            part = slice(first, first + _CACHE)
            torch.mm(matrix, columns[:, part], out=out[:, part])
        return out.view(len(matrix), *kernels.shape[1:])

    def _experts(self, block: slice) -> Tensor:
        """Returns the experts' kernels of a block of output channels: taps [K², E, R C], or points [P, E, R C]."""
        source = self.weight[:, :, block]
        taps = self._buffer("taps", *source.shape).copy_(source).flatten(2)
        return taps if self.mix_first else self._transform("experts", self.to.kernel, taps)

    def _kernels(self, experts: Tensor, chunk: slice) -> Tensor:
        """Mixes the transformed kernels of some samples: [P g, R, C]."""
        kernels = experts
        if self.mixture is not None:
            mixture = self.mixture[chunk]
            mixed = self._buffer("mixed", len(experts), len(mixture), experts.shape[2])
            kernels = torch.bmm(mixture.expand(len(experts), *mixture.shape), experts, out=mixed)
        if self.mix_first:
            kernels = self._transform("kernels", self.to.kernel, kernels)
        return kernels.view(self.points * self._groups(chunk), -1, self.channels)

    def _unmix(
        self, experts: Tensor, chunk: slice, grad: Tensor, experts_grad: Tensor, mixture_grad: Tensor | None
    ) -> None:
        """Adds the gradient of some samples' kernels to that of the experts and the mixture."""
        grad = grad.view(self.points, self._groups(chunk), -1)
        if self.mix_first:
            grad = self._transform("mixed", self.to.kernel.T, grad)
        if self.mixture is None or mixture_grad is None:
            experts_grad += grad
            return
        mixture = self.mixture[chunk].T
        experts_grad.baddbmm_(mixture.expand(len(experts), *mixture.shape), grad)
        mixture_grad[chunk] += torch.bmm(grad, experts.transpose(1, 2)).sum(dim=0)

    def _groups(self, chunk: slice) -> int:
        return 1 if self.mixture is None else chunk.stop - chunk.start

    def _tile_rows(self, chunk: slice) -> int:
        return self.tiles.cells.numel() * (chunk.stop - chunk.start)

    def _input_points(self, chunk: slice) -> Tensor:
        """Returns the transformed input tiles of some samples: [P g, b/g n, C]."""
        tiles = self._from_cells(self.x[chunk], self.tiles.inputs)  # [P b n, C]
        values = self.to.input @ tiles.view(self.points, -1)
        return values.view(self.points * self._groups(chunk), -1, self.channels)

    def _scatter(self, chunk: slice, value_grad: Tensor) -> Tensor:
        """Adds the gradient of the input tiles of some samples to their cells: [b, N, C]."""
        tiles_grad = self.to.input.T @ value_grad.view(self.points, -1)
        batch, cells = chunk.stop - chunk.start, self.x.shape[1]
        grad = self.x.new_zeros(batch * cells + 1, self.channels)
        index = _per_sample(self.tiles.inputs, batch, cells)
        grad.index_add_(0, index, tiles_grad.view(-1, self.channels))
        return grad[:-1].view(batch, cells, self.channels)

    def _from_cells(self, maps: Tensor, index: Tensor) -> Tensor:
        """Gathers the rows of maps [b, N, C] at an index [k, n] of cells (N: outside, 0): [k b n, C]."""
        batch, cells, channels = maps.shape
        rows = torch.cat([maps.reshape(-1, channels), maps.new_zeros(1, channels)])
        return rows.index_select(0, _per_sample(index, batch, cells))

    def _to_cells(self, chunk: slice, tiles: Tensor) -> Tensor:
        """Gathers output tiles [M² b n, C] into maps [b, N, C]."""
        batch = chunk.stop - chunk.start
        positions, count = self.tiles.cells.shape
        outputs = self.tiles.outputs  # [N], position * n + tile
        position, tile = outputs // count, outputs % count
        samples = torch.arange(batch)[:, None]
        index = torch.where(position < positions, (position * batch + samples) * count + tile, len(tiles))
        rows = torch.cat([tiles, tiles.new_zeros(1, self.channels)])
        return rows.index_select(0, index.flatten()).view(batch, -1, self.channels)


def _per_sample(index: Tensor, batch: int, cells: int) -> Tensor:
    """Spreads an index [k, n] of one map's cells over the rows of a batch of maps: [k b n]; outside is the last row."""
    rows = index[:, None] + cells * torch.arange(batch)[:, None]
    return torch.where(index[:, None] == cells, batch * cells, rows).flatten()
