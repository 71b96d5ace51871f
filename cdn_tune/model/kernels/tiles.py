"""Tiles of the temporal map, those with a cell that is needed, and their convolution by minimal filtering.

An output tile of R x C cells of a K x K convolution costs P = (R + K - 1) (C + K - 1) multiplications per pair of
channels instead of R C K²: 64 instead of 400 for 4 x 4 cells and K = 5, 40 instead of 100 for 1 x 4 cells. A single row
needs no transform across rows, which makes its kernels far cheaper to transform. Transforms are linear, so kernels may
be mixed before or after.

Source: A. Lavin, S. Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016 (arXiv 1509.09308); points after
B. Barabasz et al., Error Analysis and Improving the Accuracy of Winograd Convolution, 2020 (arXiv 1803.10986).

Shape letters: S clips, K kernel size, M cells of a tile, P cells under a tile, n tiles.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

# Interpolation points, besides infinity. With these float32 errors stay near those of a direct convolution (relative
# rms error for K = 5: 1.3e-6 with M = 2, 3.3e-6 with M = 4; direct: 0.7e-6). More points lose digits quickly.
_POINTS = (0.0, 1.0, -1.0, 2.0, -0.5, -2.0, 0.5)
MAX_SIDE = len(_POINTS) + 1


class Tiling(NamedTuple):
    """Index tables between the cells of a map (row by row, S² of them) and the tiles of a convolution.

    Attributes:
        kernel: Kernel size K.
        tile: Rows and columns of a tile.
        inputs: Cell under each position of each input tile [P, n]; S² stands for outside of the map.
        cells: Cell at each position of each output tile [M, n]; S² stands for outside of the map.
        outputs: The inverse of `cells`: position * n + tile of each cell [S²]; M n stands for cells of no tile.
    """

    kernel: int
    tile: tuple[int, int]
    inputs: Tensor
    cells: Tensor
    outputs: Tensor


def tiling(cells: Tensor, kernel: int, tile: tuple[int, int]) -> Tiling:
    """Returns the tiles (rows and columns of one: `tile`) that cover the output cells where `cells` [S, S] is True."""
    return _tiling(cells.cpu().numpy().tobytes(), cells.shape[0], kernel, tile)


@lru_cache(maxsize=128)
@torch.inference_mode(False)
def _tiling(cells: bytes, size: int, kernel: int, tile: tuple[int, int]) -> Tiling:
    mask = torch.frombuffer(bytearray(cells), dtype=torch.bool).view(size, size)
    rows, columns = tile
    high, wide = -(-size // rows), -(-size // columns)  # in tiles
    padded = torch.zeros(high * rows, wide * columns, dtype=torch.bool)
    padded[:size, :size] = mask
    used = padded.view(high, rows, wide, columns).any(dim=3).any(dim=1).nonzero()
    first = used * torch.tensor(tile)  # [n, 2], first cell of each

    down, across = (torch.arange(side + kernel - 1) - kernel // 2 for side in tile)
    inputs = _cells(first, down, across, size)  # [P, n]
    within = _cells(first, torch.arange(rows), torch.arange(columns), size)  # [M, n]
    outputs = torch.full((size * size + 1,), within.numel())
    outputs[within.flatten()] = torch.arange(within.numel())
    return Tiling(kernel, tile, inputs, within, outputs[:-1])


def _cells(first: Tensor, down: Tensor, across: Tensor, size: int) -> Tensor:
    """Returns the cells at all pairs of offsets from each tile's first cell: [pairs, n]."""
    rows, columns = torch.cartesian_prod(down, across).T[:, :, None] + first.T[:, None, :]
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    return torch.where(inside, rows * size + columns, size * size)


class Transforms(NamedTuple):
    """Two-dimensional transforms as matrices over flattened tiles, float64.

    Attributes:
        groups: Number of equal diagonal blocks in the transforms of inputs and kernels, of which one is held.
        input: From input tiles [P / groups, P / groups].
        kernel: From kernels [P / groups, K² / groups].
        output: To output tiles [R C, P].
    """

    groups: int
    input: Tensor
    kernel: Tensor
    output: Tensor


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def transforms(kernel: int, tile: tuple[int, int]) -> Transforms:
    """Returns the transforms with which a K x K convolution yields tiles: output(kernel(w) * input(x)).

    Args:
        kernel: Kernel size K.
        tile: Rows R and columns C of an output tile. C + K - 1 is at most `MAX_SIDE`; so is R + K - 1, unless R = 1.
    """
    rows, columns = tile
    inward, weights, outward = _line(kernel, columns)
    if rows == 1:
        return Transforms(kernel, inward, weights, torch.kron(torch.ones(1, kernel, dtype=torch.float64), outward))
    down = _line(kernel, rows)
    return Transforms(1, *(torch.kron(*pair) for pair in zip(down, (inward, weights, outward), strict=True)))


def _line(kernel: int, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the transforms of inputs, kernels and outputs along one axis."""
    side = kernel + tile - 1
    if side > MAX_SIDE:
        raise ValueError(f"kernel {kernel} with tiles of {tile} needs {side} points; at most {MAX_SIDE} are accurate")
    points = torch.tensor(_POINTS[: side - 1], dtype=torch.float64)

    def evaluate(terms: int) -> Tensor:
        """Evaluates polynomials of so many terms at the points and at infinity: [side, terms]."""
        matrix = torch.zeros(side, terms, dtype=torch.float64)
        matrix[:-1] = points[:, None] ** torch.arange(terms)
        matrix[-1, -1] = 1
        return matrix

    return torch.linalg.inv(evaluate(side)).T.contiguous(), evaluate(kernel), evaluate(tile).T.contiguous()
