"""The map's convolutions: static with one kernel, dynamic with a kernel per sample, mixed from experts.

Shape letters: B batch, C channels, S clips, Q query size, E experts, K kernel size.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from cdn_tune.model.kernels.cell_conv import convolve
from cdn_tune.model.kernels.epilogue import Epilogue
from cdn_tune.model.kernels.needed import Needed
from cdn_tune.model.kernels.products import PUBLISHED, MixedShape

Mixing = Literal["query", "map", "both"]


class StaticConv2d(nn.Module):
    """Convolution of C channels in and out with an odd kernel size K and zeros around the map.

    It has one kernel; the E experts are those of `DynamicConv2d`.
    """

    def __init__(self, channels: int, kernel_size: int, experts: int = 1) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.weight = nn.Parameter(torch.empty(kernel_size**2, experts, channels, channels))  # tap, expert, out, in
        self.bias = nn.Parameter(torch.empty(experts, channels))
        bound = 1 / math.sqrt(kernel_size**2 * channels)  # each kernel as `nn.Conv2d` draws it
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    @property
    def kernels(self) -> Tensor:
        """The kernels as `torch` orders them, a view [E, C, C, K, K] (expert, out, in, row, column)."""
        size = math.isqrt(len(self.weight))
        return self.weight.permute(1, 2, 3, 0).reshape(*self.weight.shape[1:], size, size)

    def forward(
        self,
        x: Tensor,
        query: Tensor,  # noqa: ARG002
        needed: Needed | None = None,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        """Convolves maps [B, C, S, S] whatever the query [B, Q]; see `DynamicConv2d`."""
        return convolve(x, self.weight, self.bias, needed=needed, epilogue=epilogue)


class DynamicConv2d(StaticConv2d):
    """Convolution whose kernel is a mixture of E experts, one mixture per sample.

    Mixture weights: softmax(linear(tanh(linear(query) + linear(mean of x)))), with dropout in training. An ablation
    computes them from one of the two terms (`mixing`).

    Attributes:
        products: How a GPU multiplies maps of S clips, by S, as `kernels.products` names it; as published where unset.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        query_size: int,
        experts: int,
        mixing: Mixing = "both",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels, kernel_size, experts)
        self.query = nn.Linear(query_size, channels) if mixing != "map" else None
        self.map = nn.Linear(channels, channels) if mixing != "query" else None
        self.mix = nn.Linear(channels, experts)
        self.dropout = nn.Dropout(dropout)
        self.products: dict[int, str] = {}

    def shape(self, size: int) -> MixedShape:
        """Returns the shape of the convolution of maps of S clips."""
        taps, experts, channels, _ = self.weight.shape
        return MixedShape(channels, math.isqrt(taps), experts, size)

    def mixture(self, x: Tensor, query: Tensor) -> Tensor:
        """Returns the mixture weights [B, E] of maps [B, C, S, S] and queries [B, Q]."""
        terms = [] if self.query is None else [self.query(query)]
        if self.map is not None:
            terms.append(self.map(x.mean(dim=(2, 3))))
        weights: Tensor = self.dropout(self.mix(torch.tanh(sum(terms))).softmax(dim=1))
        return weights

    def forward(
        self, x: Tensor, query: Tensor, needed: Needed | None = None, epilogue: Epilogue | None = None
    ) -> Tensor:
        """Convolves each map [B, C, S, S] with the kernel mixed for it and its query [B, Q], and ends the layer.

        Output cells that are not among the needed ones (by default all) are undefined.
        """
        product = self.products.get(x.shape[3], PUBLISHED)
        return convolve(x, self.weight, self.bias, self.mixture(x, query), needed, product, epilogue)
