"""Convolution with a kernel per sample, mixed from experts, on a CPU.

Kernels are mixed and transformed block by block of output channels and never kept; the backward pass mixes them again.

Shape letters: B batch, N = S² cells, C channels, E experts, K kernel size, M cells of a tile, P points of a transformed
tile, n tiles; in one block of the work: R output channels, b samples, g kernels (b, or 1 that serves all samples).
"""

import math
import threading
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from cdn_tune.model.kernels.tiles import Tiling, Transforms, transforms

# Output channels of a block, at least; elements of a block of transformed kernels, and columns of it that are
# transformed at once: what a processor's caches hold.
_ROWS = 32
_BLOCK = 10 << 18
_COLUMNS = 1 << 15


def mixed_conv(x: Tensor, weight: Tensor, mixture: Tensor | None, tiles: Tiling) -> Tensor:
    """Returns maps [B, N, C], one row per cell, convolved with mixed kernels; 0 at cells of no tile.

    It computes in float32 at least (autocast has no effect inside).

    Args:
        x: Maps [B, N, C].
        weight: Experts' kernels [K², E, C, C] (tap, expert, out, in).
        mixture: Mixture weights per sample [B, E]; None where a single expert serves all samples.
        tiles: The tiles to compute.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    mixture = None if mixture is None else mixture.to(dtype)
    return _apply(x.to(dtype).contiguous(), weight.to(dtype), mixture, tiles)


class Workspace(threading.local):
    """Memory that the convolutions of a thread reuse: fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """Returns memory for one purpose; what it held before is lost."""
        size = math.prod(shape)
        if (name, dtype) not in self._buffers or len(self._buffers[name, dtype]) < size:
            self._buffers.pop((name, dtype), None)
            with torch.inference_mode(False):  # the next convolution may be one in training
                self._buffers[name, dtype] = torch.empty(size, dtype=dtype, device="cpu")
        return self._buffers[name, dtype][:size].view(shape)

    def clear(self) -> None:
        """Gives the memory back."""
        self._buffers.clear()


workspace = Workspace()


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
            x, weight, mixture = ctx.saved_tensors
            return (*_Work(x, weight, mixture, ctx.tiles).backward(grad.contiguous()), None)


_apply = cast(Callable[[Tensor, Tensor, Tensor | None, Tiling], Tensor], _MixedConv.apply)


class _Work:
    """One convolution, cut into blocks of output channels and chunks of samples.

    A block's kernels stand either per sample as mixed taps [K², B, R C], or per expert as points [P, E, R C]: mixing
    first costs a transform per sample, mixing last one per expert.
    """

    def __init__(self, x: Tensor, weight: Tensor, mixture: Tensor | None, tiles: Tiling) -> None:
        self.x, self.weight, self.mixture, self.tiles = x, weight, mixture, tiles
        groups, *matrices = transforms(tiles.kernel, tiles.tile)
        self.to = Transforms(groups, *(matrix.to(x.dtype) for matrix in matrices))
        self.points = groups * len(self.to.input)
        self.batch, self.cells, self.channels = x.shape
        experts = weight.shape[1]
        self.mix_first = mixture is not None and self.batch <= experts
        per_row = self.points * self.channels
        rows = min(self.channels, max(_ROWS, _BLOCK // per_row // _ROWS * _ROWS))
        self.blocks = [slice(first, min(first + rows, self.channels)) for first in range(0, self.channels, rows)]
        most = max(1 if self.mix_first else 4, _BLOCK // (per_row * rows))  # mixing last reads all experts every time
        size = self.batch if mixture is None else most
        self.chunks = [slice(first, min(first + size, self.batch)) for first in range(0, self.batch, size)]

    def forward(self) -> Tensor:
        """Returns the convolved maps [B, N, C]."""
        values = self._input_points()
        out = [self.x.new_empty(self._count(chunk) * self.tiles.cells.numel(), self.channels) for chunk in self.chunks]
        for block in self.blocks:
            kernels = self._block_kernels(block)
            for chunk, value, tile in zip(self.chunks, values, out, strict=True):
                kernel = self._chunk_kernels(kernels, chunk)  # [P g, R, C]
                product = self._buffer("product", *value.shape[:2], kernel.shape[1])  # [P g, b/g n, R]
                torch.bmm(value, kernel.transpose(1, 2), out=product)
                result = self._buffer("result", len(self.to.output), product.numel() // self.points)
                tile[:, block] = torch.mm(self.to.output, product.view(self.points, -1), out=result).view(len(tile), -1)
        return torch.cat(
            [self._to_cells(tile, self._count(chunk)) for chunk, tile in zip(self.chunks, out, strict=True)]
        )

    def backward(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the gradients of x, weight and mixture."""
        values = self._input_points()
        tiles = [_gather(grad[chunk], self.tiles.cells) for chunk in self.chunks]  # [M b n, C] each
        value_grads = self._per_chunk("value_grads")
        weight_grad = torch.empty_like(self.weight)
        mixture_grad = None if self.mixture is None else torch.zeros_like(self.mixture)
        for block in self.blocks:
            kernels = self._block_kernels(block)
            kernels_grad = self._buffer("kernels_grad", *kernels.shape)
            if not self.mix_first:
                kernels_grad.zero_()
            for chunk, value, value_grad, tile in zip(self.chunks, values, value_grads, tiles, strict=True):
                kernel = self._chunk_kernels(kernels, chunk)  # [P g, R, C]
                product_grad = self._buffer("product", *value.shape[:2], kernel.shape[1])  # [P g, b/g n, R]
                tile_grad = tile[:, block].reshape(len(self.to.output), -1)
                torch.mm(self.to.output.T, tile_grad, out=product_grad.view(self.points, -1))
                value_grad.baddbmm_(product_grad, kernel, beta=int(block.start > 0))
                kernel_grad = self._buffer("kernel_grad", *kernel.shape)
                torch.bmm(product_grad.transpose(1, 2), value, out=kernel_grad)
                self._add_chunk(chunk, kernel_grad, kernels, kernels_grad, mixture_grad)
            self._store_block(block, kernels_grad, weight_grad, mixture_grad)
        x_grad = [self._to_x(value, self._count(chunk)) for chunk, value in zip(self.chunks, value_grads, strict=True)]
        return torch.cat(x_grad), weight_grad, mixture_grad

    def _block_kernels(self, block: slice) -> Tensor:
        """Returns a block's kernels: per sample [K², B, R C] where mixed first, else per expert [P, E, R C]."""
        taps = self.weight[:, :, block].flatten(2)
        if self.mix_first and self.mixture is not None:
            out = self._buffer("mixed", len(taps), self.batch, taps.shape[2])
            return torch.bmm(self.mixture.expand(len(taps), -1, -1), taps, out=out)
        out = self._buffer("experts", self.points, *taps.shape[1:])
        return self._transform(self.to.kernel, taps, out)

    def _chunk_kernels(self, kernels: Tensor, chunk: slice) -> Tensor:
        """Returns the transformed kernels of a chunk [P g, R, C]."""
        if self.mixture is not None:
            out = self._buffer("kernels", self.points, self._count(chunk), kernels.shape[2])
            if self.mix_first:
                kernels = self._transform(self.to.kernel, kernels[:, chunk], out)
            else:
                kernels = torch.bmm(self.mixture[chunk].expand(self.points, -1, -1), kernels, out=out)
        return kernels.view(self.points * kernels.shape[1], -1, self.channels)

    def _add_chunk(
        self, chunk: slice, kernel_grad: Tensor, kernels: Tensor, kernels_grad: Tensor, mixture_grad: Tensor | None
    ) -> None:
        """Adds the gradient of a chunk's transformed kernels to that of the block's kernels."""
        grad = kernel_grad.view(self.points, -1, kernels.shape[2])  # [P, g, R C]
        if self.mixture is None or mixture_grad is None:
            kernels_grad += grad
        elif self.mix_first:
            self._transform(self.to.kernel.T, grad, kernels_grad[:, chunk])
        else:
            kernels_grad.baddbmm_(self.mixture[chunk].T.expand(self.points, -1, -1), grad)
            mixture_grad[chunk] += torch.bmm(grad, kernels.transpose(1, 2)).sum(dim=0)

    def _store_block(self, block: slice, grad: Tensor, weight_grad: Tensor, mixture_grad: Tensor | None) -> None:
        """Writes the gradient of a block's kernels into that of the experts' kernels."""
        out = weight_grad[:, :, block].flatten(2)  # [K², E, R C], a view
        if self.mix_first and self.mixture is not None and mixture_grad is not None:
            for tap, sample_grad in enumerate(grad):  # one at a time, because the target has gaps
                torch.mm(self.mixture.T, sample_grad, out=out[tap])
            mixture_grad += torch.bmm(grad, self.weight[:, :, block].flatten(2).transpose(1, 2)).sum(dim=0)
        else:
            self._transform(self.to.kernel.T, grad, out)

    def _transform(self, matrix: Tensor, kernels: Tensor, out: Tensor) -> Tensor:
        """Writes the transform by blocks [j, k] of kernels [groups k, g, X] into out [groups j, g, X]."""
        rows, taps = matrix.shape
        for group in range(self.to.groups):
            for index in range(kernels.shape[1]):
                source = kernels[group * taps : (group + 1) * taps, index]
                target = out[group * rows : (group + 1) * rows, index]
                for first in range(0, kernels.shape[2], _COLUMNS):
                    part = slice(first, first + _COLUMNS)
                    torch.mm(matrix, source[:, part], out=target[:, part])
        return out

    def _transform_tiles(self, matrix: Tensor, tiles: Tensor, out: Tensor) -> Tensor:
        """Writes the transform by blocks [p, p] of tiles [groups p, X] into out."""
        shape = (self.to.groups, len(matrix), -1)
        torch.bmm(matrix.expand(self.to.groups, -1, -1), tiles.view(shape), out=out.view(shape))
        return out

    def _buffer(self, name: str, *shape: int) -> Tensor:
        return workspace.take(name, self.x.dtype, *shape)

    def _count(self, chunk: slice) -> int:
        return len(range(*chunk.indices(self.batch)))

    def _per_chunk(self, name: str) -> list[Tensor]:
        """Returns memory for the transformed input tiles of every chunk: [P g, b/g n, C] each."""
        tiles = self.tiles.inputs.shape[1]
        whole = self._buffer(name, self.batch, self.points * tiles * self.channels)
        return [
            whole[chunk].view(self.points * (1 if self.mixture is None else self._count(chunk)), -1, self.channels)
            for chunk in self.chunks
        ]

    def _input_points(self) -> list[Tensor]:
        """Returns the transformed input tiles of every chunk: [P g, b/g n, C] each."""
        values = self._per_chunk("values")
        for chunk, value in zip(self.chunks, values, strict=True):
            rows = _rows(self.tiles.inputs, self._count(chunk), self.cells)
            tiles = self._buffer("tiles", len(rows), self.channels)
            _select(self.x[chunk].reshape(-1, self.channels), rows, tiles)
            self._transform_tiles(self.to.input, tiles, value)
        return values

    def _to_x(self, value_grad: Tensor, batch: int) -> Tensor:
        """Adds the gradient of transformed input tiles to the cells under them: [b, N, C]."""
        out = self._buffer("tiles", *value_grad.shape)
        tiles_grad = self._transform_tiles(self.to.input.T, value_grad, out).view(-1, self.channels)
        grad = self.x.new_zeros(batch * self.cells + 1, self.channels)
        grad.index_add_(0, _rows(self.tiles.inputs, batch, self.cells), tiles_grad)
        return grad[:-1].view(batch, self.cells, self.channels)

    def _to_cells(self, tiles: Tensor, batch: int) -> Tensor:
        """Moves output tiles [M b n, C] to their cells [b, N, C]."""
        position, tile = self.tiles.outputs // self.tiles.cells.shape[1], self.tiles.outputs % self.tiles.cells.shape[1]
        rows = (position * batch + torch.arange(batch)[:, None]) * self.tiles.cells.shape[1] + tile  # [b, N]
        outside = self.tiles.outputs == self.tiles.cells.numel()
        rows = torch.where(outside, len(tiles), rows).flatten()
        return _select(tiles, rows, tiles.new_empty(len(rows), self.channels)).view(batch, -1, self.channels)


def _gather(maps: Tensor, index: Tensor) -> Tensor:
    """Returns the rows of maps [b, N, C] at an index [k, n] of cells, 0 for those outside: [k b n, C]."""
    rows = _rows(index, *maps.shape[:2])
    return _select(maps.reshape(-1, maps.shape[2]), rows, maps.new_empty(len(rows), maps.shape[2]))


def _rows(index: Tensor, batch: int, cells: int) -> Tensor:
    """Spreads an index [k, n] of one map's cells over a batch's rows: [k b n]; N becomes b N, one past the last row."""
    rows = index[:, None] + cells * torch.arange(batch)[:, None]
    return torch.where(index[:, None] == cells, batch * cells, rows).flatten()


def _select(rows: Tensor, index: Tensor, out: Tensor) -> Tensor:
    """Writes rows [k, C] at an index into out; an index of k selects zeros."""
    return torch.index_select(torch.cat([rows, rows.new_zeros(1, rows.shape[1])]), 0, index, out=out)
