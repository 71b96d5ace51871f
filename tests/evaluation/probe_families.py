"""Two small families for the tests of probes: one sees the video, one knows the sentence alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from cdn_tune.config import DataConfig
from tests.model.toy_family import Toy, ToyLoss, ToyModel


class Seeing(Toy):
    """The toy."""

    label = "Seeing"
    name: Literal["seeing"] = Field("seeing", description="family of the model")


class Blindfold(Toy):
    """The toy without eyes."""

    label = "Blindfold"
    name: Literal["blindfold"] = Field("blindfold", description="family of the model")

    def build(self, data: DataConfig, loss: ToyLoss) -> BlindfoldModel:
        return BlindfoldModel(self, data, loss)


class BlindfoldModel(ToyModel):
    """Scores parts by the sentence alone."""

    def __init__(self, config: Blindfold, data: DataConfig, loss: ToyLoss) -> None:
        super().__init__(config, data, loss)
        self.video, self.query = nn.Identity(), nn.Linear(data.word_size, config.parts)

    def forward(self, visual: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:  # noqa: ARG002
        scores: Tensor = self.query((words * word_mask[..., None]).sum(1) / word_mask.sum(1, keepdim=True))
        return scores
