"""A family that knows the sentence alone, for the tests of probes: the example's, without eyes."""

from __future__ import annotations

from typing import Any, Literal

from own_parts.family import PartsConfig
from own_parts.network import Parts
from pydantic import Field
from torch import Tensor, nn

from cdn_tune.config import DataConfig


class Blindfold(PartsConfig):
    """The `model` section."""

    label = "Blindfold"
    name: Literal["blindfold"] = Field("blindfold", description="family of the model")  # type: ignore[assignment]

    def build(self, data: DataConfig, loss: Any) -> BlindParts:
        return BlindParts(self, data, loss)


class BlindParts(Parts):
    """Scores parts by the sentence alone."""

    def __init__(self, config: Blindfold, data: DataConfig, loss: Any) -> None:
        super().__init__(config, data, loss)
        self.video, self.query = nn.Identity(), nn.Linear(data.word_size, config.parts)

    def forward(self, visual: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:  # noqa: ARG002
        scores: Tensor = self.query((words * word_mask[..., None]).sum(1) / word_mask.sum(1, keepdim=True))
        return scores
