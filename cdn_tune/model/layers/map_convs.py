"""Convolutions over the temporal map, and the weights that make up for cells without a moment.

Shape letters: B batch, C channels, S clips.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.model.layers.norm import MapNorm


class MapConvs(nn.Module):
    """Layers of convolution, batch normalisation (if wanted), ReLU and a weight map, as 2D-TAN and MMN have them.

    The first convolution pads the map by all that the others take off again: in between it is larger than the map, and
    what lies outside of it influences what lies inside. The weight, 1 / (number of valid cells under the kernel), makes
    up for cells that hold no moment; a cell that the kernel reaches is valid for the next layer, all others are 0.
    Statistics of the normalisation are over the whole enlarged map.

    Args:
        channels: Channels C.
        kernel_sizes: Odd kernel size of each layer.
        mask: Valid cells [S, S] of the input, on the CPU, where constants are computed.
        batch_norm: Whether layers normalise.
        coarser: Valid cells of smaller maps that the same kernels convolve.
        gates: Whether a layer's output is multiplied by a gate per cell, the sigmoid of a convolution of its input.
    """

    def __init__(
        self,
        channels: int,
        kernel_sizes: Sequence[int],
        mask: Tensor,
        batch_norm: bool = False,
        coarser: Sequence[Tensor] = (),
        gates: bool = False,
    ) -> None:
        super().__init__()
        border = sum(size // 2 for size in kernel_sizes)
        paddings = [border] + [0] * (len(kernel_sizes) - 1)
        layers = list(zip(kernel_sizes, paddings, strict=True))
        convs = [nn.Conv2d(channels, channels, size, padding=padding) for size, padding in layers]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(MapNorm(channels) for _ in (layers if batch_norm else ()))
        gated = layers if gates else ()
        self.gates = nn.ModuleList(nn.Conv2d(channels, 1, size, padding=padding) for size, padding in gated)
        device = convs[0].weight.device
        for scale, each in enumerate((mask, *coarser)):
            for index, weight in enumerate(neighbour_weights(each, layers)):
                self.register_buffer(f"weight_{scale}_{index}", weight.to(device), persistent=False)

    def weights(self, scale: int = 0) -> list[Tensor]:
        """Returns each layer's weight map [S', S'], smaller from layer to layer, the last one [S, S]."""
        return [getattr(self, f"weight_{scale}_{index}") for index in range(len(self.convs))]

    def forward(self, x: Tensor, scale: int = 0) -> Tensor:
        """Convolves maps [B, C, S, S], 0 at invalid cells, to maps [B, C, S, S]; `scale` is 0 for the finest maps."""
        for index, (conv, weight) in enumerate(zip(self.convs, self.weights(scale), strict=True)):
            y = conv(x)
            if len(self.norms):
                y = self.norms[index](y, weight > 0)
            y = torch.relu(y) * weight
            x = y * torch.sigmoid(self.gates[index](x)) if len(self.gates) else y
        return x


def neighbour_weights(mask: Tensor, layers: Iterable[tuple[int, int]]) -> Iterator[Tensor]:
    """Yields each layer's weight map: 1 / (number of valid cells under its kernel), 0 where there is none; float32.

    Args:
        mask: Valid cells [S, S] of the first layer's input.
        layers: Kernel size and padding of each; cells that a layer reaches are valid for the next.
    """
    valid = mask
    for size, padding in layers:
        count = count_under(valid, size, padding)
        valid = count > 0
        yield torch.where(valid, 1 / count.clamp(min=1), 0.0).float()


def count_under(mask: Tensor, kernel_size: int, padding: int) -> Tensor:
    """Counts the True cells of `mask` [S, S] under a kernel at each cell: float64 [S', S']."""
    cells = functional.pad(mask[None, None].double(), (padding,) * 4)
    return functional.avg_pool2d(cells, kernel_size, stride=1, divisor_override=1).round()[0, 0]
