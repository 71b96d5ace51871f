"""Dynamic convolution: a kernel per sample, mixed from experts by what the query and the map say.

Shape letters: B batch, C channels, S clips, Q query size, E experts, K kernel size.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Mixing = Literal["query", "map", "both"]


class DynamicConv2d(nn.Module):
    """Convolution of equal size in and out, whose kernel is a mixture of E experts, one mixture per sample.

    Mixture weights: softmax(linear(tanh(linear(query) + linear(mean of x)))).

    Args:
        channels: Channels C in and out.
        kernel_size: Odd kernel size K.
        query_size: Size Q of the query encoding.
        experts: Number of kernels E.
        mixing: What the mixture is computed from; an ablation drops the other term.
        dropout: Dropout on the mixture weights in training.
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
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.weight = nn.Parameter(torch.empty(experts, channels, channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(experts, channels))
        self.query = nn.Linear(query_size, channels) if mixing != "map" else None
        self.map = nn.Linear(channels, channels) if mixing != "query" else None
        self.mix = nn.Linear(channels, experts)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every expert as `nn.Conv2d` draws its kernel and bias."""
        bound = 1 / math.sqrt(self.weight[0, 0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def mixture(self, x: Tensor, query: Tensor) -> Tensor:
        """Returns the mixture weights [B, E] of maps [B, C, S, S] and queries [B, Q]."""
        terms = [] if self.query is None else [self.query(query)]
        if self.map is not None:
            terms.append(self.map(x.mean(dim=(2, 3))))
        weights: Tensor = self.dropout(self.mix(torch.tanh(sum(terms))).softmax(dim=1))
        return weights

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        """Convolves each map of x [B, C, S, S] with the kernel mixed for its query [B, Q]: [B, C, S, S]."""
        mixture = self.mixture(x, query)  # [B, E]
        batch, channels, *size = x.shape
        kernels = torch.einsum("be,eoikl->boikl", mixture, self.weight).flatten(0, 1)  # [B C, C, K, K]
        biases = (mixture @ self.bias).flatten()
        pad = self.weight.shape[-1] // 2
        out = functional.conv2d(x.reshape(1, batch * channels, *size), kernels, biases, padding=pad, groups=batch)
        return out.view(batch, channels, *size)
