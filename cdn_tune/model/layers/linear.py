"""Linear layers whose bias starts at 0."""

from torch import nn


def linear(channels: int, out: int) -> nn.Linear:
    """Returns a linear layer with torch's weights and a bias of 0."""
    layer = nn.Linear(channels, out)
    nn.init.zeros_(layer.bias)
    return layer
