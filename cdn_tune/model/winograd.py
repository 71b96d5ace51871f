"""Minimal filtering: convolution as products of transformed tiles and transformed kernels.

An output tile of M x M cells of a K x K convolution costs P = (M + K - 1)² multiplications per pair of channels
instead of M² K²: 36 instead of 100 for M = 2, K = 5. Transforms are linear, so kernels may be mixed before or after.

Source: A. Lavin, S. Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016 (arXiv 1509.09308); points after
B. Barabasz et al., Error Analysis and Improving the Accuracy of Winograd Convolution, 2020 (arXiv 1803.10986).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

# Interpolation points, besides infinity. With these float32 errors stay near those of a direct convolution (relative
# rms error for K = 5: 1.3e-6 with M = 2, 3.3e-6 with M = 4; direct: 0.7e-6). More points lose digits quickly.
_POINTS = (0.0, 1.0, -1.0, 2.0, -0.5, -2.0, 0.5)
MAX_SIDE = len(_POINTS) + 1


class Transforms(NamedTuple):
    """Two-dimensional transforms as matrices over flattened tiles, float64.

    Attributes:
        input: From input tiles [P, P].
        kernel: From kernels [P, K²].
        output: To output tiles [M², P].
    """

    input: Tensor
    kernel: Tensor
    output: Tensor


@lru_cache(maxsize=16)
def transforms(kernel: int, tile: int) -> Transforms:
    """Returns the transforms with which a K x K convolution yields M x M tiles: output(kernel(w) * input(x)).

    Args:
        kernel: Kernel size K.
        tile: Side M of an output tile; M + K - 1 is at most `MAX_SIDE`.
    """
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

    inward, weights, outward = torch.linalg.inv(evaluate(side)).T, evaluate(kernel), evaluate(tile).T
    return Transforms(*(torch.kron(matrix, matrix) for matrix in (inward, weights, outward)))
