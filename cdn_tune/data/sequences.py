"""Videos as sequences of frame features: resizing, the grid of seconds, crops, and queries that are read together.

Source: SnAG (Mu, Mo, Li, CVPR 2024). A step is one frame feature. Randomness is drawn by functions or generators that
are passed.

Shape letters: T steps, D feature size, Q queries.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from cdn_tune.moments.grid import Grid

Floats = npt.NDArray[np.floating]
Draw = Callable[[int, int], int]  # an integer between two, both included

_TRIES = 5000


def subsampled(features: Floats, every: int = 1, normalise: bool = False) -> Tensor:
    """Returns every n-th step [ceil(T / n), D], float32, each divided by its length if wanted."""
    steps = torch.from_numpy(np.ascontiguousarray(features[::every], dtype=np.float32))
    return functional.normalize(steps, dim=1) if normalise else steps


def resized(features: Tensor, length: int) -> Tensor:
    """Returns features [T, D] as so many steps [length, D].

    Interpolated linearly to the least multiple of the length that is no shorter than T, and averaged from there.
    """
    ratio = -(-len(features) // length)
    channels = functional.interpolate(features.T[None], size=length * ratio, mode="linear", align_corners=False)
    return functional.avg_pool1d(channels, ratio)[0].T


def resized_grid(grid: Grid, steps: int, length: int) -> Grid:
    """Returns the grid of a video of `steps` steps that was resized to `length`: its clips touch."""
    size = ((steps - 1) * grid.clip_stride + grid.clip_size) / length
    return Grid(size, size, grid.fps)


class Crop(NamedTuple):
    """A part of a video.

    Attributes:
        first: Its first step.
        length: Its steps.
        targets: Starts and ends of the moments in its steps [Q, 2].
    """

    first: int
    length: int
    targets: Floats


def crop(
    steps: int,
    wanted: Floats,
    offset: float,
    most: int,
    draw: Draw,
    ratio: tuple[float, float] | None = (0.9, 1.0),
    keep: float = 0.5,
) -> Crop:
    """Returns a random part of a video, in which every moment keeps more than a share of its length.

    Args:
        steps: Steps of the video.
        wanted: Starts and ends of the moments in steps [Q, 2].
        offset: Half a clip in steps: how far a moment may reach beyond the part's first and last step.
        most: Steps that a part may have; a longer video's part has as many.
        draw: Draws integers.
        ratio: Least and greatest share of a shorter video; None: it is taken whole.
        keep: Share of a moment that must remain.

    Raises:
        ValueError: If no such part is found.
    """
    if steps > most:
        length = most
    elif ratio is None:
        return Crop(0, steps, wanted)
    else:
        length = draw(math.ceil(ratio[0] * steps), math.ceil(ratio[1] * steps))
    low = max(0, math.floor(wanted[:, 0].max() - length))
    high = min(steps - length, math.ceil(wanted[:, 1].min()))
    for _ in range(_TRIES if low <= high else 0):
        first = draw(low, high)
        shifted = np.clip(wanted - first, -offset, length + offset)
        if np.all(shifted[:, 1] - shifted[:, 0] > keep * (wanted[:, 1] - wanted[:, 0])):
            return Crop(first, length, shifted)
    raise ValueError(f"no {length} of {steps} steps hold all of {len(wanted)} moments; put fewer queries together")


def reach(steps: int, most: int, grid: Grid, ratio: tuple[float, float] | None = (0.9, 1.0)) -> float:
    """Returns how many seconds the shortest part that `crop` may take of a video covers."""
    shortest = steps if ratio is None else math.ceil(ratio[0] * steps)
    least = most if steps > most else shortest
    return float((grid.clip_stride * (least - 1) + grid.clip_size) / grid.fps)


def groups_within(
    moments: Floats, seconds: float, most: int, generator: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Returns the queries of a video in groups that a part of so many seconds can hold.

    The earliest query that is free takes the free ones whose moments end within the part that begins with it; if its
    own does not, it stays alone. Of more than `most`, some are drawn, and the others left out.

    Args:
        moments: Starts and ends in seconds [Q, 2].
        seconds: What the shortest part covers, see `reach`.
        most: Queries of a group.
        generator: Draws.
    """
    order = np.argsort(moments[:, 0], kind="stable")
    free = np.ones(len(order), dtype=bool)
    groups = []
    for place, query in enumerate(order):
        if not free[place]:
            continue
        last = moments[query, 0] + seconds
        inside = np.arange(len(order)) == place
        if moments[query, 1] <= last:
            inside |= free & (moments[order, 1] <= last)
        free &= ~inside
        groups.append(some(order[inside], most, generator))
    return groups


def shuffled_groups(queries: int, most: int, generator: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """Returns all queries of a video of fixed length, shuffled and cut into groups of at most so many."""
    order = generator.permutation(queries)
    return [order[first : first + most] for first in range(0, queries, most)]


def some(queries: npt.NDArray[np.int64], most: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Returns at most so many of the queries, drawn if there are more."""
    return queries if len(queries) <= most else generator.choice(queries, most, replace=False)
