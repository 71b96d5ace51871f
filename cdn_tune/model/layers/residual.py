"""The scale of a residual branch, and stochastic depth.

Shape letters: B batch, T time steps, C channels, G groups of time steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ResidualScale(nn.Module):
    """Scales a residual branch per channel (LayerScale) and, in training, drops it for some samples (stochastic depth).

    Sources: Touvron et al. (arXiv 2103.17239); Huang et al. (arXiv 1603.09382), kept branches divided by 1 - p.

    Args:
        channels: Channels C.
        drop: Probability p in [0, 1) that a sample's branch is dropped.
        start: What the scale starts at.
    """

    def __init__(self, channels: int, drop: float = 0.0, start: float = 1e-4) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), start))
        self.drop = drop

    def forward(self, branch: Tensor, groups: Sequence[int] = ()) -> Tensor:
        """Returns a branch [B, T, C], scaled; each of consecutive groups of steps of these sizes is dropped by itself.

        Without sizes all steps are one group.
        """
        branch = branch * self.scale
        if not self.training or self.drop == 0:
            return branch
        sizes = groups or (branch.shape[1],)
        kept = torch.rand(len(branch), len(sizes), device=branch.device) >= self.drop  # [B, G]
        steps = [kept[:, group, None].expand(-1, size) for group, size in enumerate(sizes)]
        return branch * (torch.cat(steps, dim=1).to(branch.dtype) / (1 - self.drop))[..., None]
