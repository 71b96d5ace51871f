"""The grid of frame features: which seconds a step of a video's features stands for."""

from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Times = TypeVar("Times", float, Tensor, NDArray[np.floating])


class Grid(NamedTuple):
    """Clips of a number of frames, one begun every so many frames, each a step; it stands for its centre.

    Attributes:
        clip_size: Frames of a clip.
        clip_stride: Frames from one clip's start to the next one's.
        fps: Frames per second; of several videos, a tensor that broadcasts with the times.
    """

    clip_size: float
    clip_stride: float
    fps: float | Tensor

    @property
    def offset(self) -> float:
        """Half a clip, in steps: how far before a clip's centre it begins."""
        return 0.5 * self.clip_size / self.clip_stride

    def to_steps(self, seconds: Times) -> Times:
        """Returns times in steps; not cut to the video."""
        fps: Any = self.fps
        return cast(Times, seconds * fps / self.clip_stride - self.offset)

    def to_seconds(self, steps: Times) -> Times:
        """Returns steps in seconds; not cut to the video."""
        fps: Any = self.fps
        return cast(Times, (steps * self.clip_stride + 0.5 * self.clip_size) / fps)
