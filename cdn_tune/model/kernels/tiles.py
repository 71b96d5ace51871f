"""Which tiles of the temporal map are convolved: those with a cell that anyone needs.

Shape letters: S clips, K kernel size, M cells of a tile, P cells under a tile, n tiles.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


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
    """Returns the tiles that cover some cells.

    Args:
        cells: True at the output cells that are needed [S, S].
        kernel: Kernel size K.
        tile: Rows and columns of a tile.
    """
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
