"""The convolution stack over the temporal map, static or dynamic layer by layer.

Shape letters: B batch, C channels (the hidden size), S clips, Q query size, N layers.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from cdn_tune.model.cdn.config import MapConfig
from cdn_tune.model.cdn.dynamic_conv import DynamicConv2d, StaticConv2d
from cdn_tune.model.kernels.epilogue import Epilogue
from cdn_tune.model.kernels.needed import Needed, needed
from cdn_tune.model.layers.map_convs import count_under, neighbour_weights
from cdn_tune.model.layers.norm import MapNorm


class MapStack(nn.Module):
    """N layers of normalisation, convolution with residual, ReLU and a weight map; a normalisation at the end.

    A convolution near the edge of the valid cells sees fewer of them; the weight map, 1 / (number of valid cells under
    the kernel), makes up for it. A cell that the kernel reaches becomes valid for the next layer; all others are 0.

    Args:
        config: The stack's settings.
        channels: Channels C.
        query_size: Size of the query encoding Q.
        mask: Valid cells [S, S] of the stack's input, on the CPU, where all constants are computed: on the meta device
            that would load the compiler, which takes seconds.
        coarser: Valid cells of smaller maps that the same kernels convolve; each has normalisations of its own.
        gates: Whether a layer's output is multiplied by a gate per cell, the sigmoid of a convolution of its input.
    """

    def __init__(
        self,
        config: MapConfig,
        channels: int,
        query_size: int,
        mask: Tensor,
        coarser: Sequence[Tensor] = (),
        gates: bool = False,
    ) -> None:
        super().__init__()
        self.residual = config.residual
        self.convs = nn.ModuleList(
            DynamicConv2d(channels, size, query_size, config.experts, config.mixing, config.mixing_dropout)
            if dynamic
            else StaticConv2d(channels, size)
            for size, dynamic in zip(config.kernel_sizes, config.dynamic, strict=True)
        )
        norms = len(self.convs) + 1 if config.batch_norm else 0
        self.norms = nn.ModuleList(MapNorm(channels, config.norm_over) for _ in range(norms))
        gated = config.kernel_sizes if gates else ()
        self.gates = nn.ModuleList(nn.Conv2d(channels, 1, size, padding=size // 2) for size in gated)
        self.coarser_norms = nn.ModuleList(
            nn.ModuleList(MapNorm(channels, config.norm_over) for _ in range(norms)) for _ in coarser
        )
        self.cells = nn.ModuleList(_Cells(config, each, next(self.parameters()).device) for each in (mask, *coarser))

    def forward(self, x: Tensor, query: Tensor, mask: Tensor, scale: int = 0) -> Tensor:
        """Convolves maps for queries.

        Args:
            x: Maps [B, C, S, S], 0 at invalid cells.
            query: Query encodings [B, Q].
            mask: The valid cells again, on the device of the maps.
            scale: Which of all maps these are.

        Returns:
            Maps [B, C, S, S], undefined at invalid cells.
        """
        constants = cast(_Cells, self.cells[scale])
        norms = cast(nn.ModuleList, self.coarser_norms[scale - 1]) if scale else self.norms
        x = x.contiguous(memory_format=torch.channels_last)
        for index, conv in enumerate(self.convs):
            x = _norm(norms, index, x, mask)
            y = conv(x, query, constants.needed(index), Epilogue(constants.weights[index], self.residual))
            x = y * torch.sigmoid(self.gates[index](x)) if len(self.gates) else y
        return _norm(norms, len(self.convs), x, mask)


class _Cells(nn.Module):
    """What every layer has to know of one map: the weight maps [N, S, S], and which cells are needed."""

    weights: Tensor

    def __init__(self, config: MapConfig, mask: Tensor, device: torch.device) -> None:
        super().__init__()
        maps = weight_maps(mask, config.kernel_sizes)
        sees_map = [dynamic and config.mixing != "query" for dynamic in config.dynamic]
        statistics = config.batch_norm and config.norm_over == "all"
        trained = [statistics or sees for sees in sees_map]
        train = needed_cells(mask, maps > 0, config.kernel_sizes, trained, statistics)
        evaluation = needed_cells(mask, maps > 0, config.kernel_sizes, sees_map, False)
        self.register_buffer("weights", maps.to(device), persistent=False)
        for masks, training in ((train, True), (evaluation, False)):
            for index, (each, size) in enumerate(zip(masks, config.kernel_sizes, strict=True)):
                for name, constant in zip(_names(index, training), needed(each, size), strict=True):
                    self.register_buffer(name, constant.to(device, copy=True), persistent=False)  # not of all layers

    def needed(self, index: int) -> Needed:
        """Returns the cells of a layer's output that are needed."""
        return Needed(*(self.get_buffer(name) for name in _names(index, self.training)))


def _names(index: int, training: bool) -> list[str]:
    """Returns what the buffers are called that hold a layer's needed cells."""
    return [f"{'training' if training else 'evaluation'}_{part}_{index}" for part in Needed._fields]


def _norm(norms: nn.ModuleList, index: int, x: Tensor, mask: Tensor) -> Tensor:
    """Normalises by the `index`-th layer, if there are any."""
    return norms[index](x, mask) if len(norms) else x


def weight_maps(mask: Tensor, kernel_sizes: tuple[int, ...]) -> Tensor:
    """Returns each layer's weight map [N, S, S]: 1 / (number of valid cells under its kernel), 0 where there is none.

    `mask` [S, S] holds the valid cells of the first layer's input.
    """
    return torch.stack(list(neighbour_weights(mask, [(size, size // 2) for size in kernel_sizes])))


def needed_cells(
    mask: Tensor, reached: Tensor, kernel_sizes: tuple[int, ...], whole_input: list[bool], whole_output: bool
) -> Tensor:
    """Returns the cells [N, S, S] of each layer's output that can influence the score of a valid cell.

    A score depends on the cells under the kernels of the layers above; on all cells, where a layer above takes the mean
    of its whole input (mixing by the map) or normalises by statistics over it. Cells that no kernel has reached are 0
    whatever the layer computes.

    Args:
        mask: Valid cells [S, S], whose scores are wanted.
        reached: Cells [N, S, S] that may differ from 0 after each layer.
        kernel_sizes: Odd kernel size of each layer.
        whole_input: Whether each layer depends on its whole input.
        whole_output: Whether all of the last layer's output is wanted.
    """
    wanted, cells = torch.ones_like(mask) if whole_output else mask, []
    for output, size, whole in reversed(list(zip(reached, kernel_sizes, whole_input, strict=True))):
        cells.append(output & wanted)
        wanted = torch.ones_like(mask) if whole else count_under(cells[-1], size, size // 2) > 0
    return torch.stack(cells[::-1])
