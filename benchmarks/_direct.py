"""The published formulation of the map's convolutions, as a contender: mix a kernel per sample, one group per sample.

Shape letters: B batch, C channels, S clips, Q query size, E experts, K kernel size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.model.cdn.dynamic_conv import DynamicConv2d, StaticConv2d
from cdn_tune.model.cdn.network import CDN
from cdn_tune.model.kernels.epilogue import Epilogue
from cdn_tune.model.kernels.needed import Needed


class DirectDynamicConv2d(nn.Module):
    """Mixes every sample's kernel, keeps it, and convolves all cells with one group per sample."""

    def __init__(self, ours: DynamicConv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(ours.kernels.detach().clone(memory_format=torch.contiguous_format))
        self.bias = nn.Parameter(ours.bias.detach().clone())
        self.query, self.map, self.mix, self.dropout = ours.query, ours.map, ours.mix, ours.dropout
        self.mixture = ours.mixture

    def forward(self, x: Tensor, query: Tensor, _: Needed | None = None, epilogue: Epilogue | None = None) -> Tensor:
        """Convolves maps [B, C, S, S] for queries [B, Q], and ends the layer."""
        mixture = self.mixture(x, query)  # [B, E]
        batch, channels, *size = x.shape
        kernel = self.weight.shape[-1]
        kernels = (mixture @ self.weight.flatten(1)).view(batch * channels, channels, kernel, kernel)
        biases = (mixture @ self.bias).flatten()
        one = x.reshape(1, batch * channels, *size)
        out = functional.conv2d(one, kernels, biases, padding=kernel // 2, groups=batch).view(batch, channels, *size)
        return out if epilogue is None else epilogue.after(out, x)


class DirectStaticConv2d(nn.Conv2d):
    """`nn.Conv2d` over all cells, with the first kernel of ours."""

    def __init__(self, ours: StaticConv2d) -> None:
        channels, kernel = ours.bias.shape[1], ours.kernels.shape[-1]
        super().__init__(channels, channels, kernel, padding=kernel // 2)
        with torch.no_grad():
            self.weight.copy_(ours.kernels[0])
            self.bias.copy_(ours.bias[0])

    def forward(
        self,
        x: Tensor,
        query: Tensor,  # noqa: ARG002
        needed: Needed | None = None,  # noqa: ARG002
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        """Convolves maps [B, C, S, S] whatever the query, and ends the layer."""
        out = super().forward(x)
        return out if epilogue is None else epilogue.after(out, x)


def direct(conv: StaticConv2d) -> nn.Module:
    """Returns the published formulation of one of our convolutions, with weights of its own that are equal."""
    return DirectDynamicConv2d(conv) if isinstance(conv, DynamicConv2d) else DirectStaticConv2d(conv)


def make_direct(model: CDN) -> CDN:
    """Rebuilds a model on the published formulation, in place."""
    for index, conv in enumerate(model.map.convs):
        model.map.convs[index] = direct(conv)
    return model
