"""From clips to moments: the temporal map by stacked max-pools or stacked convolutions (2D-TAN, arXiv 1912.03590).

Shape letters: B batch, H hidden, S clips, P proposals (valid cells).
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from cdn_tune.moments.temporal_map import scale_cells, valid_mask


class Proposals(nn.Module):
    """Fills the valid cells of the temporal map, one moment length per layer of a stack over the clips.

    Attributes:
        mask: True at valid cells [S, S].
        by_row: Row times S plus column of the valid cells, row by row [P].

    Args:
        clips: Number of clips S.
        scale_layers: Moment lengths per scale.
        layers: One module per moment length, [B, H, moments of the length before] -> [B, H, moments of this length];
            the first reads the clips. None of its own, if they are those of a finer map.
    """

    mask: Tensor
    cells: Tensor
    by_row: Tensor

    def __init__(self, clips: int, scale_layers: Sequence[int], layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers, self.lengths = nn.ModuleList(layers), sum(scale_layers)
        cells = [s * clips + e for pair in scale_cells(clips, scale_layers) for s, e in zip(*pair, strict=True)]
        index = torch.tensor(cells)
        self.register_buffer("mask", valid_mask(clips, scale_layers).to(index.device), persistent=False)
        self.register_buffer("cells", index, persistent=False)
        self.register_buffer("by_row", torch.tensor(sorted(cells)), persistent=False)

    def forward(self, clips: Tensor, layers: Iterable[nn.Module] | None = None) -> Tensor:
        """Returns the temporal map [B, H, S, S] of clips [B, H, S]; cells that are no proposals hold 0.

        Given the layers of a finer map, whose shortest moments are as many clips as here, it uses the first of them.
        """
        size = clips.shape[2]
        moments, state = [], clips
        for layer in islice(self.layers if layers is None else layers, self.lengths):
            state = layer(state)
            moments.append(state)
        flat = clips.new_zeros(*clips.shape[:2], size * size, dtype=state.dtype)
        return flat.index_copy(2, self.cells, torch.cat(moments, dim=2)).view(*clips.shape, size)

    def spread(self, values: Tensor) -> Tensor:
        """Returns maps [B, S, S] of the values of the valid cells, row by row [B, P]; other cells hold 0."""
        flat = values.new_zeros(len(values), self.mask.numel()).index_copy(1, self.by_row, values)
        return flat.view(-1, *self.mask.shape)


class Ends(nn.Module):
    """Joins every moment with its first and its last clip by a linear layer, or adds them (no weights)."""

    def __init__(self, hidden: int, how: Literal["add", "concat"]) -> None:
        super().__init__()
        # One layer over all three, in parts: the map three times as wide is never made.
        concat = how == "concat"
        self.moment: nn.Module = nn.Conv2d(hidden, hidden, 1) if concat else nn.Identity()
        self.first: nn.Module = nn.Conv1d(hidden, hidden, 1, bias=False) if concat else nn.Identity()
        self.last: nn.Module = nn.Conv1d(hidden, hidden, 1, bias=False) if concat else nn.Identity()

    def forward(self, moments: Tensor, clips: Tensor) -> Tensor:
        """Returns maps [B, H, S, S], undefined at invalid cells, of maps [B, H, S, S] and clips [B, H, S]."""
        joined: Tensor = self.moment(moments) + self.first(clips)[..., None] + self.last(clips)[..., None, :]
        return joined


def pool_proposals(clips: int, scale_layers: Sequence[int]) -> Proposals:
    """Returns proposals by max-pooling: a cell holds the maximum over the clips of its moment."""
    layers: list[nn.Module] = []
    for scale, count in enumerate(scale_layers):
        layers.append(nn.Identity() if scale == 0 else nn.MaxPool1d(3, stride=2))
        layers.extend(nn.MaxPool1d(2, stride=1) for _ in range(count - 1))
    return Proposals(clips, scale_layers, layers)


def conv_proposals(clips: int, scale_layers: Sequence[int], hidden: int, first: bool = True) -> Proposals:
    """Returns proposals by convolution: each moment length is computed from two (or three) of the length before.

    With `first` a moment of one clip is that clip after a convolution with kernel size 1, otherwise the clip itself.
    """
    layers: list[nn.Module] = []
    for scale, count in enumerate(scale_layers):
        if scale:
            layers.append(nn.Conv1d(hidden, hidden, 3, stride=2))
        else:
            layers.append(nn.Conv1d(hidden, hidden, 1) if first else nn.Identity())
        layers.extend(nn.Conv1d(hidden, hidden, 2) for _ in range(count - 1))
    return Proposals(clips, scale_layers, layers)
