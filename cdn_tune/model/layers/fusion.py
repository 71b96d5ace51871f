"""Fusion of a query with a temporal map.

Shape letters: B batch, H hidden, Q query size, S clips.
"""

from torch import Tensor, nn
from torch.nn import functional


class Fusion(nn.Module):
    """Multiplies a linear of the query with a 1x1 convolution of the map, and normalises over H.

    Args:
        hidden: Channels of the map H.
        query_size: Size of a query's encoding Q; H if None.
    """

    def __init__(self, hidden: int, query_size: int | None = None) -> None:
        super().__init__()
        self.query = nn.Linear(query_size or hidden, hidden)
        self.moment = nn.Conv2d(hidden, hidden, 1)

    def forward(self, query: Tensor, moments: Tensor, mask: Tensor) -> Tensor:
        """Returns the fused map [B, H, S, S] of queries [B, Q], maps [B, H, S, S] and the mask of valid cells [S, S].

        It is of unit length over H at valid cells and 0 elsewhere.
        """
        product = self.query(query)[:, :, None, None] * self.moment(moments)
        return functional.normalize(product, dim=1) * mask
