"""The network of the family. Shape letters: B batch, P parts, T frames, D feature size, L words, W word size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.config import DataConfig
from cdn_tune.model.family import Batch, Losses, MomentModel, Spans
from own_parts.family import PartsConfig


class Parts(MomentModel):
    """Compares the mean of each part's frames with the mean of the query's words; its output is the scores [B, P]."""

    config: PartsConfig
    loss_names = ("overlap",)

    def __init__(self, config: PartsConfig, data: DataConfig, loss: Any) -> None:
        super().__init__()
        self.config, self.settings = config, loss
        self.video, self.query = nn.Linear(data.feature_size, config.width), nn.Linear(data.word_size, config.width)

    def forward(self, visual: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Returns the scores of frames [B, T, D] for words [B, L, W], of which the mask [B, L] tells the real ones."""
        parts = functional.adaptive_avg_pool1d(visual.transpose(1, 2), self.config.parts).transpose(1, 2)  # [B, P, D]
        query = (words * word_mask[..., None]).sum(1) / word_mask.sum(1, keepdim=True)  # [B, W]
        return torch.einsum("bph,bh->bp", self.video(parts), self.query(query))

    def spans(self, output: Tensor, durations: Tensor) -> Spans:
        """Returns the parts as candidates."""
        edges = torch.linspace(0, 1, self.config.parts + 1, dtype=torch.float64, device=output.device).unfold(0, 2, 1)
        return Spans(durations.double()[:, None, None] * edges, output.float().sigmoid())

    def loss(self, output: Tensor, batch: Batch) -> Losses:
        """Returns the cross entropy with the share of each part that the moment covers."""
        spans = self.spans(output, batch.durations).spans
        low, high = spans.clamp(min=batch.moments[:, None, :1], max=batch.moments[:, None, 1:]).unbind(-1)
        target = ((high - low) / (spans[..., 1] - spans[..., 0])) ** self.settings.sharpness  # [B, P]
        total = functional.binary_cross_entropy_with_logits(output.float(), target.float())
        return Losses(total, {"overlap": total})
