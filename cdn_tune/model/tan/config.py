"""2D-TAN's configuration (arXiv 1912.03590). Imports no torch."""

from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field, model_validator

from cdn_tune.config.experiment import DataConfig, Fraction
from cdn_tune.config.family import LossConfig
from cdn_tune.config.keys import Frozen, Positive
from cdn_tune.model.layers.map_config import ConvsConfig, FusedMapConfig, FusedMapLoss, Layers, Overlaps

if TYPE_CHECKING:
    from cdn_tune.model.tan.network import TAN


class TANQuery(Frozen):
    """The query encoder, an LSTM over word vectors."""

    layers: Layers = Field(3, description="LSTM layers")
    hidden: Positive = Field(512, description="size of a query's encoding [Q]")
    bidirectional: bool = Field(
        False, description="read the query in both directions, with half of the size each, and concatenate"
    )
    read_padding: bool = Field(
        False,
        description="bidirectional only: take the backward state at the last word, where it has read the padding, as "
        "the published code does",
    )

    @model_validator(mode="after")
    def _check(self) -> "TANQuery":
        if self.bidirectional and self.hidden % 2:
            raise ValueError(f"hidden={self.hidden} is odd, and bidirectional halves it; use {self.hidden + 1}")
        return self


class TANLoss(FusedMapLoss):
    """Scaled-IoU cross-entropy."""

    bias: Fraction = Field(0.0, description="what every target above 0 is raised by; the slope becomes less")
    saturating: bool = Field(
        False, description="compute it from scores, as published: a score that has rounded to 0 or 1 teaches nothing"
    )


class TANConfig(FusedMapConfig):
    """The whole network."""

    loss = TANLoss
    label = "2D-TAN"
    per_layer: ClassVar = {"map.kernel_size": ("map.layers", int)}

    name: Literal["tan"] = Field("tan", description="family of the model; it determines the keys of model and loss")
    query: TANQuery = TANQuery()
    map: ConvsConfig = ConvsConfig()
    overlaps: Overlaps = "exact"

    def build(self, data: DataConfig, loss: LossConfig) -> "TAN":
        """Returns the network."""
        from cdn_tune.model.tan.network import TAN

        return TAN(self, data.feature_size, data.word_size, cast(TANLoss, loss))

    def summary(self) -> str:
        """Returns sizes and variant."""
        sizes = f"{self.map_summary}, hidden {self.hidden}, {self.map.layers} layers, {self.map.kernels}"
        return f"{sizes}{self.switches_summary}"
