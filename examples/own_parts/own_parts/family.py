"""The configuration of the family: it imports no torch, so that experiments are read quickly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cdn_tune.config import DataConfig, LossConfig, ModelConfig

if TYPE_CHECKING:
    from cdn_tune.model.family import MomentModel


class PartsLoss(LossConfig):
    """The `loss` section."""

    sharpness: float = Field(1.0, gt=0, description="exponent of the target")


class PartsConfig(ModelConfig):
    """The `model` section: a video in equal parts, each a candidate."""

    loss = PartsLoss
    label = "Parts"
    name: Literal["parts"] = Field("parts", description="family of the model")
    parts: int = Field(8, ge=1, description="equal parts of a video, each a candidate")
    width: int = Field(32, ge=1, description="size in which video and query are compared")

    def build(self, data: DataConfig, loss: LossConfig) -> MomentModel:
        """Returns the untrained network."""
        from own_parts.network import Parts

        return Parts(self, data, loss)
