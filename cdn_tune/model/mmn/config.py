"""MMN's configuration (Mutual Matching Network, arXiv 2109.04872). Imports no torch."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field

from cdn_tune.config.experiment import DataConfig
from cdn_tune.config.family import Inputs, LossConfig
from cdn_tune.model.layers.map_config import (
    ContrastiveLoss,
    ConvsConfig,
    Joint,
    MapModelConfig,
    Overlaps,
    ScorePower,
)

if TYPE_CHECKING:
    from cdn_tune.model.mmn.network import MMN


class MMNLoss(ContrastiveLoss):
    """Cross-entropy of the IoU score, and contrast of moments with sentences both ways."""

    contrastive_epochs: Annotated[int, Field(ge=0)] = Field(
        0, description="epochs after which the contrastive losses count a hundredth; 0: never"
    )
    count_removed: bool = Field(
        False, description="moments that are no negatives count as if of cosine 0, as in the published code"
    )


class MMNConfig(MapModelConfig):
    """The whole network."""

    loss = MMNLoss
    inputs = Inputs(batch=("videos",))
    label = "MMN"
    per_video = True
    per_layer: ClassVar = {"map.kernel_size": ("map.layers", int)}

    name: Literal["mmn"] = Field("mmn", description="family of the model; it determines the keys of model and loss")
    joint: Joint = 256
    map: ConvsConfig = ConvsConfig()
    score_power: ScorePower = 0.5
    overlaps: Overlaps = "exact"

    def build(self, data: DataConfig, loss: LossConfig) -> "MMN":
        """Returns the network."""
        from cdn_tune.model.mmn.network import MMN

        return MMN(self, data.feature_size, data.word_size, cast(MMNLoss, loss))

    def summary(self) -> str:
        """Returns sizes and variant."""
        sizes = f"hidden {self.hidden}, joint {self.joint}"
        return f"{self.map_summary}, {sizes}, {self.map.layers} layers, {self.map.kernels}"
