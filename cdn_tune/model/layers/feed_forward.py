"""The feed-forward branch of a transformer block."""

from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.model.layers.linear import linear

EXPANSION = 4


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU between, dropout after each.

    Args:
        channels: Channels C.
        dropout: Probability.
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = linear(channels, EXPANSION * channels)
        self.reduce = linear(EXPANSION * channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the branch [..., C] of x [..., C]."""
        branch: Tensor = self.dropout(self.reduce(self.dropout(functional.gelu(self.expand(x)))))
        return branch
