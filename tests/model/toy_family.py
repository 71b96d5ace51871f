"""A model family in one file, such as a user may write: equal spans, scored by what video and query have in common."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from cdn_tune.config import DataConfig, LossConfig, ModelConfig
from cdn_tune.model.family import Losses, MomentModel, Spans


class ToyLoss(LossConfig):
    """Settings of the loss."""

    sharpness: float = Field(1.0, gt=0, description="exponent of the target IoU")


class Toy(ModelConfig):
    """A video in a few equal parts."""

    loss = ToyLoss
    label = "Toy"
    name: Literal["toy"] = Field("toy", description="family of the model")
    parts: int = Field(4, ge=1, description="equal parts of a video, each a candidate")
    width: int = Field(8, ge=1, description="size in which video and query are compared")

    def build(self, data: DataConfig, loss: LossConfig) -> ToyModel:
        return ToyModel(self, data, loss)


class ToyModel(MomentModel):
    """Scores [B, P] as the only output."""

    config: Toy
    loss_names = ("overlap",)

    def __init__(self, config: Toy, data: DataConfig, loss: Any) -> None:
        super().__init__()
        self.config, self.settings = config, loss
        self.video, self.query = nn.Linear(data.feature_size, config.width), nn.Linear(data.word_size, config.width)

    def forward(self, visual: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        parts = functional.adaptive_avg_pool1d(visual.transpose(1, 2), self.config.parts).transpose(1, 2)  # [B, P, D]
        query = (words * word_mask[..., None]).sum(1) / word_mask.sum(1, keepdim=True)  # [B, W]
        return torch.einsum("bph,bh->bp", self.video(parts), self.query(query))

    def spans(self, output: Tensor, durations: Tensor) -> Spans:
        edges = torch.linspace(0, 1, self.config.parts + 1, dtype=torch.float64, device=output.device).unfold(0, 2, 1)
        return Spans(durations.double()[:, None, None] * edges, output.float().sigmoid())

    def loss(self, output: Tensor, batch: Any) -> Losses:
        spans = self.spans(output, batch.durations).spans
        low, high = spans.clamp(min=batch.moments[:, None, :1], max=batch.moments[:, None, 1:]).unbind(-1)
        target = ((high - low) / (spans[..., 1] - spans[..., 0])) ** self.settings.sharpness  # [B, P]
        total = functional.binary_cross_entropy_with_logits(output.float(), target.float())
        return Losses(total, {"overlap": total})
