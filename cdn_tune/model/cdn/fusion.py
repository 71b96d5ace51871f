"""Fusion of the query with every moment of the temporal map.

Shape letters: B batch, H hidden, S clips.
"""

from torch import Tensor, nn
from torch.nn import functional


class Fusion(nn.Module):
    """Multiplies a linear of the query with a 1x1 convolution of the map, and normalises over H.

    Args:
        hidden: Size H of query and moments.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden)
        self.moment = nn.Conv2d(hidden, hidden, 1)

    def forward(self, query: Tensor, moments: Tensor, mask: Tensor) -> Tensor:
        """Fuses.

        Args:
            query: Query encodings [B, H].
            moments: Temporal map [B, H, S, S].
            mask: True at valid cells [S, S].

        Returns:
            Fused map [B, H, S, S], of unit length over H at valid cells and 0 elsewhere.
        """
        product = self.query(query)[:, :, None, None] * self.moment(moments)
        return functional.normalize(product, dim=1) * mask
