"""MMN's configuration (Mutual Matching Network, arXiv 2109.04872). Imports no torch."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field

from cdn_tune.config.experiment import DataConfig, Fraction
from cdn_tune.config.family import Inputs, LossConfig
from cdn_tune.config.keys import Positive
from cdn_tune.model.layers.map_config import ConvsConfig, IouLoss, MapModelConfig, Overlaps, Weight

if TYPE_CHECKING:
    from cdn_tune.model.mmn.network import MMN

Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class MMNLoss(IouLoss):
    """Cross-entropy of the IoU score, and contrast of moments with sentences both ways."""

    contrastive_weight: Weight = Field(0.05, description="weight of both contrastive losses [w]")
    contrastive_epochs: Annotated[int, Field(ge=0)] = Field(
        0, description="epochs after which the contrastive losses count a hundredth; 0: never"
    )
    positives: Positive = Field(1, description="cells of highest IoU that are a query's positive moments [K]")
    margin: Weight = Field(0.4, description="what the cosine of positive pairs is lessened by")
    video_temperature: Temperature = Field(0.1, description="temperature of a moment against sentences")
    sentence_temperature: Temperature = Field(0.1, description="temperature of a sentence against moments")
    negative_iou: Fraction = Field(0.5, description="IoU from which a moment of the query's own video is no negative")
    sentence_iou: Fraction = Field(
        0.5, description="IoU of their moments from which another sentence of the video is no negative"
    )
    count_removed: bool = Field(
        False, description="moments that are no negatives count as if of cosine 0, as in the published code"
    )


class MMNConfig(MapModelConfig):
    """The whole network."""

    loss = MMNLoss
    inputs = Inputs(batch=("videos",))
    label = "MMN"
    per_layer: ClassVar = {"map.kernel_size": ("map.layers", int)}

    name: Literal["mmn"] = Field("mmn", description="family of the model; it determines the keys of model and loss")
    joint: Positive = Field(256, description="size in which moments and sentences are compared [J]")
    map: ConvsConfig = ConvsConfig()
    score_power: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.5, description="exponent of the contrastive score in the score of a moment; 0: the IoU score alone"
    )
    overlaps: Overlaps = "exact"

    def build(self, data: DataConfig, loss: LossConfig) -> "MMN":
        """Returns the network."""
        from cdn_tune.model.mmn.network import MMN

        return MMN(self, data.feature_size, data.word_size, cast(MMNLoss, loss))

    def summary(self) -> str:
        """Returns sizes and variant."""
        sizes = f"hidden {self.hidden}, joint {self.joint}"
        return f"{self.map_summary}, {sizes}, {self.map.layers} layers, {self.map.kernels}"
