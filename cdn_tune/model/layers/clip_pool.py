"""From frames to clips: the mean of each clip's frames.

Shape letters: B batch, T frames, D feature size, S clips, F = T / S frames per clip, H hidden.
"""

import torch
from torch import Tensor, nn


class MeanPool(nn.Module):
    """Averages each clip's frames, after a linear layer and a ReLU (2D-TAN, arXiv 1912.03590)."""

    def __init__(self, feature_size: int, hidden: int, clips: int) -> None:
        super().__init__()
        self.frame = nn.Linear(feature_size, hidden)
        self.clips = clips

    def forward(self, visual: Tensor) -> tuple[Tensor, None]:
        """Pools frames [B, T, D] to clips [B, H, S]; there are no attention weights."""
        frames = segments(torch.relu(self.frame(visual)), self.clips)  # [B, S, F, H]
        return frames.mean(dim=2).transpose(1, 2), None


def segments(frames: Tensor, clips: int) -> Tensor:
    """Cuts frames into clips: [B, T, H] -> [B, S, F, H]."""
    batch, count, hidden = frames.shape
    if count % clips:
        raise ValueError(f"{count} frames cannot be divided into {clips} clips of equal length")
    return frames.reshape(batch, clips, count // clips, hidden)
