"""From frames to clips: sequential frame attention.

Shape letters: B batch, T frames, D feature size, S clips, F = T / S frames per clip, H hidden, J attention steps.
"""

import torch
from torch import Tensor, nn

from cdn_tune.model.layers.clip_pool import segments


class AttentionPool(nn.Module):
    """Attends to each clip's frames in J steps, each guided by the attended feature of the previous one."""

    def __init__(self, feature_size: int, hidden: int, clips: int, steps: int, width: int) -> None:
        super().__init__()
        self.frame = nn.Linear(feature_size, hidden)
        self.steps = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(steps))
        self.guide = nn.Linear(2 * hidden, hidden)
        self.guide_key = nn.Linear(hidden, width)
        self.frame_key = nn.Linear(hidden, width)
        self.weight = nn.Linear(width, 1)
        self.reduce = nn.Linear(steps * hidden, hidden)
        self.clips = clips

    def forward(self, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Pools frames [B, T, D], of which S divides T, to clips [B, H, S].

        Returns also the attention weights [B, S, F, J], which sum to 1 over the F frames of a clip.
        """
        frames = segments(torch.relu(self.frame(visual)), self.clips)  # [B, S, F, H]
        mean = frames.mean(dim=2)  # [B, S, H]
        keys = self.frame_key(frames)  # [B, S, F, A]
        attended = torch.zeros_like(mean)  # [B, S, H]
        steps, weights = [], []
        for step in self.steps:
            guide = torch.relu(self.guide(torch.cat([step(mean), attended], dim=2)))  # [B, S, H]
            score = self.weight(torch.tanh(self.guide_key(guide)[:, :, None] + keys))  # [B, S, F, 1]
            weight = score.softmax(dim=2)
            attended = (weight * frames).sum(dim=2)  # [B, S, H]
            steps.append(attended)
            weights.append(weight)
        clips = torch.relu(self.reduce(torch.cat(steps, dim=2)))  # [B, S, H]
        return clips.transpose(1, 2), torch.cat(weights, dim=3)
