"""The query encoder: an LSTM over word vectors.

Shape letters: B batch, L words, W word size, H hidden.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn


class QueryEncoder(nn.Module):
    """Reads a query and returns the state at its last word.

    Bidirectional: the forward state at the last word and the backward state at the first go through a linear layer, or
    are concatenated where `join` is false. The backward direction starts at each query's last word; with `read_padding`
    it starts at the end of the padded batch, as the published code does, so that a query's encoding depends on the
    batch it is in. H is the state size of each direction.

    `word_states` is the size of a word's state in the last layer, of both directions if there are two.

    2D-TAN's code, which concatenates, takes the backward state at the last word too, where that has read nothing but
    the padding and this word; with `read_padding` and without `join` so does this.
    """

    def __init__(
        self,
        word_size: int,
        hidden: int,
        layers: int,
        bidirectional: bool = False,
        read_padding: bool = False,
        join: bool = True,
    ) -> None:
        super().__init__()
        self.word_states = 2 * hidden if bidirectional else hidden
        directions = 2 if bidirectional else 1
        sizes = [word_size] + [hidden * directions] * (layers - 1)
        self.read_padding = read_padding
        self.forwards = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(
            nn.LSTM(size, hidden, batch_first=True) for size in (sizes if bidirectional else [])
        )
        self.join = nn.Linear(2 * hidden, hidden) if bidirectional and join else None

    def forward(self, words: Tensor, word_mask: Tensor) -> Tensor:
        """Returns encodings [B, H] of queries: word vectors [B, L, W] before padding, and a mask, 1 at words [B, L].

        Where both directions are concatenated, encodings are [B, 2H]. A query without words is encoded as without
        context (zeros before `join`).
        """
        return self.read(words, word_mask)[1]

    def read(self, words: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the states at all words [B, L, `word_states`], and the encodings that `forward` returns."""
        # Many processors refuse LSTMs in half precision, and GPUs compute them in fp16 where bf16 is set.
        # There is no autocast of tensors without memory.
        with nullcontext() if words.is_meta else torch.autocast(words.device.type, enabled=False):
            return self._encode(words.float() if words.dtype.itemsize < 4 else words, word_mask)

    def _encode(self, words: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor]:
        mask = word_mask.bool()
        lengths = mask.sum(dim=1)  # [B]
        last = (lengths - 1).clamp(min=0)  # [B]
        if not self.backwards:
            state = words
            for layer in self.forwards:
                state, _ = layer(state)  # [B, L, H]
            return state, _state_at(state, last) * (lengths > 0)[:, None]

        turned = _reversal(mask, self.read_padding)[:, :, None]  # [B, L, 1]
        state = words
        for ahead, back in zip(self.forwards, self.backwards, strict=True):
            forth, _ = ahead(state)  # [B, L, H]
            against, _ = back(state.gather(1, turned.expand_as(state)))
            against = against.gather(1, turned.expand_as(against))  # [B, L, H], in reading order again
            state = torch.cat([forth, against], dim=2)
        back_at = last if self.read_padding and self.join is None else torch.zeros_like(last)
        joined = torch.cat([_state_at(forth, last), _state_at(against, back_at)], dim=1) * (lengths > 0)[:, None]
        return state, joined if self.join is None else self.join(joined)


def _state_at(states: Tensor, index: Tensor) -> Tensor:
    """Picks one state per sample: [B, L, H] and [B] -> [B, H]."""
    return states.gather(1, index[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]


def _reversal(mask: Tensor, whole: bool) -> Tensor:
    """Returns the index [B, L] that reverses each query's words (its own inverse); with `whole`, also the padding."""
    positions = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    if whole:
        return mask.shape[1] - 1 - positions
    mirrored = mask.sum(dim=1, keepdim=True) - 1 - positions
    return torch.where(mirrored >= 0, mirrored, positions)
