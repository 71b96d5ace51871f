"""Multi-head attention over padded sequences: to all of them, or within a window around each step.

Shape letters: B batch, T query steps, S key steps, C query channels, E key channels, H heads, d = C / H, W window.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.model.layers.linear import linear

# Steps of a block of local attention, at least: the smaller, the less is computed outside of the window; the larger,
# the fewer keys are copied twice.
_BLOCK = 32


class Attention(nn.Module):
    """Attention of queries to keys, which are the values' source, too.

    Args:
        channels: Query channels C, which H divides.
        heads: Heads H.
        key_channels: Key channels E; by default C.
        out: Channels out; by default C.
        window: Odd window W in which a step sees keys; 0: it sees all. Only where queries and keys are of one grid.
        dropout: Probability after the output layer.
        attention_dropout: Probability on the attention weights.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        key_channels: int | None = None,
        out: int | None = None,
        window: int = 0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels")
        if window and window % 2 == 0:
            raise ValueError(f"window {window} is even; use {window - 1} or {window + 1}")
        source = channels if key_channels is None else key_channels
        self.query, self.key, self.value = (
            linear(channels, channels),
            linear(source, channels),
            linear(source, channels),
        )
        self.out = linear(channels, channels if out is None else out)
        self.heads, self.window, self.attention_dropout = heads, window, attention_dropout
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor) -> Tensor:
        """Returns what each query step attends to [B, T, out].

        Args:
            query: [B, T, C].
            key: [B, S, E].
            value: [B, S, E].
            key_mask: True at real keys, bool [B, S]. A sequence without any attends to its first step.
        """
        projected = self.query(query), self.key(key), self.value(value)
        dropout = self.attention_dropout if self.training else 0.0
        if self.window:
            mixed = local_attention(*projected, key_mask, self.heads, self.window, dropout)
        else:
            mixed = global_attention(*projected, key_mask, self.heads, dropout)
        attended: Tensor = self.dropout(self.out(mixed))
        return attended

    def weights(self, query: Tensor, key: Tensor, key_mask: Tensor) -> Tensor:
        """Returns how much each query step attends to each key, mean of the heads [B, T, S]; without a window.

        The arguments are those of `forward`.
        """
        queries, keys = self.query(query), self.key(key)
        each = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)  # values that tell the keys apart
        values = each.repeat(1, self.heads).expand(len(keys), -1, -1)  # [B, S, H S], the same of every head
        mixed = global_attention(queries, keys, values, key_mask, self.heads)  # [B, T, H S]
        return mixed.unflatten(2, (self.heads, -1)).mean(dim=2)


def global_attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor, heads: int, dropout: float = 0.0
) -> Tensor:
    """Returns softmax(q kᵀ / √d) v of each head, joined [B, T, C]; q [B, T, C], k and v [B, S, C], mask [B, S]."""
    allowed = key_mask.clone()
    allowed[:, 0] |= ~key_mask.any(dim=1)
    return _attend(query, key, value, allowed[:, None, None], heads, dropout)


def local_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int, window: int, dropout: float = 0.0
) -> Tensor:
    """Returns attention within a window: step i sees the real keys from i - W // 2 to i + W // 2, both included.

    Computed in blocks of steps, each with the keys around it, so that work grows with T W and not with T².

    Args:
        query: [B, T, C].
        key: [B, T, C].
        value: [B, T, C].
        mask: True at real steps, bool [B, T].
        heads: H.
        window: Odd W.
        dropout: Probability on the attention weights.

    Returns:
        Joined heads [B, T, C], 0 at padded steps.
    """
    batch, steps, channels = query.shape
    side = window // 2
    block = min(max(side, _BLOCK), steps)
    count = -(-steps // block)
    fill = count * block - steps
    query = functional.pad(query, (0, 0, 0, fill)).reshape(batch * count, block, channels)
    key, value = (_around(each, block, side, fill) for each in (key, value))
    real = functional.pad(mask, (side, side + fill)).unfold(1, block + 2 * side, block).flatten(0, 1)
    step = torch.arange(block, device=mask.device)[:, None]
    seen = torch.arange(block + 2 * side, device=mask.device)[None] - side - step  # [block, keys], distances
    # Padded steps see themselves, so that no step sees nothing; they are zeroed below.
    allowed = (seen.abs() <= side) & (real[:, None] | (seen == 0))  # [B n, block, keys]
    mixed = _attend(query, key, value, allowed[:, None], heads, dropout)
    return mixed.reshape(batch, count * block, channels)[:, :steps] * mask[..., None]


def _around(x: Tensor, block: int, side: int, fill: int) -> Tensor:
    """Cuts [B, T, C] into blocks with `side` more steps at both sides: [B n, block + 2 side, C]."""
    padded = functional.pad(x, (0, 0, side, side + fill))
    return padded.unfold(1, block + 2 * side, block).transpose(2, 3).flatten(0, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, heads: int, dropout: float) -> Tensor:
    def parts(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)  # [B, H, T, d]

    mixed = functional.scaled_dot_product_attention(parts(query), parts(key), parts(value), allowed, dropout)
    return mixed.transpose(1, 2).flatten(2)
