"""Text encoders: words to tokens that the video attends to.

Shape letters: N queries, L words, W word size, E text width; one more token with a background token: L'.
"""

import torch
from torch import Tensor, nn

from cdn_tune.model.layers.attention import Attention
from cdn_tune.model.layers.encoder_block import EncoderBlock
from cdn_tune.model.layers.linear import linear
from cdn_tune.model.layers.positions import Positions
from cdn_tune.model.snag.config import TextConfig


class _Words(nn.Module):
    """Word vectors in the text's width, with positions; in training, longer queries are cut."""

    def __init__(self, config: TextConfig, word_size: int) -> None:
        super().__init__()
        self.embed = linear(word_size, config.hidden)
        self.positions = Positions(config.words, config.hidden) if config.positions else None
        self.most = config.words

    def embedded(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns embeddings [N, L, E] and their mask [N, L]."""
        if self.training:
            words, mask = words[:, : self.most], mask[:, : self.most]
        x = self.embed(words * mask[..., None])
        return (x if self.positions is None else self.positions(x, mask)), mask


class TextEncoder(_Words):
    """A transformer over the words, with an optional learnt background token before them."""

    def __init__(self, config: TextConfig, word_size: int) -> None:
        super().__init__(config, word_size)
        self.background: nn.Parameter | None = None
        if config.background:
            self.background = nn.Parameter(nn.init.trunc_normal_(torch.empty(config.hidden), std=0.02))
        self.blocks = nn.ModuleList(
            EncoderBlock(
                config.hidden,
                config.heads,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                path_dropout=config.path_dropout,
            )
            for _ in range(config.layers)
        )

    def forward(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns tokens [N, L', E] and their mask [N, L'] of word vectors [N, L, W] and a bool mask [N, L]."""
        x, mask = self.embedded(words, mask)
        if self.background is not None:
            x, mask = _prepend(self.background.to(x.dtype).expand(len(x), 1, -1), x, mask)
        for block in self.blocks:
            x, mask = block(x, mask)
        return x, mask


class PooledText(_Words):
    """The words as they are, with an optional token before them: what their mean attends to among them."""

    def __init__(self, config: TextConfig, word_size: int) -> None:
        super().__init__(config, word_size)
        self.pool = Attention(config.hidden, config.heads) if config.background else None

    def forward(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns tokens [N, L', E] and their mask [N, L'] of word vectors [N, L, W] and a bool mask [N, L]."""
        x, mask = self.embedded(words, mask)
        if self.pool is not None:
            count = mask.sum(dim=1).clamp(min=1)[:, None, None]
            mean = (x * mask[..., None]).sum(dim=1, keepdim=True) / count  # [N, 1, E]
            known, seen = _prepend(mean, x, mask)
            x, mask = _prepend(self.pool(mean, known, known, seen), x, mask)
        return x, mask


def _prepend(token: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Puts tokens [N, 1, E] before x [N, L, E]; their mask is that of the first word."""
    return torch.cat([token, x], dim=1), torch.cat([mask[:, :1], mask], dim=1)
