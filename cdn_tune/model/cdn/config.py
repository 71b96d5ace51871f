"""CDN's configuration (paper: Cross-modal Dynamic Networks, IEEE TMM; its letters in brackets). Imports no torch."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field, model_validator

from cdn_tune.config.experiment import DataConfig, Fraction
from cdn_tune.config.family import LossConfig
from cdn_tune.config.keys import Frozen, Positive
from cdn_tune.model.layers.map_config import ConvsConfig, FusedMapConfig, FusedMapLoss, Layers
from cdn_tune.model.layers.map_config import derive_scale_layers as derive_scale_layers

if TYPE_CHECKING:
    from cdn_tune.model.cdn.network import CDN

Flags = Annotated[tuple[Annotated[bool, Field(strict=True)], ...], Field(strict=False, max_length=1000)]


class QueryConfig(Frozen):
    """The query encoder, an LSTM over word vectors."""

    layers: Layers = Field(3, description="LSTM layers")
    bidirectional: bool = Field(
        False, description="read the query in both directions and join the two end states by a linear layer"
    )
    read_padding: bool = Field(
        False, description="bidirectional only: start the backward direction in the padding, as the published code does"
    )


class MapConfig(ConvsConfig):
    """The convolution stack over the temporal map."""

    dynamic_layers: Annotated[int, Field(ge=0)] | Flags = Field(
        4,
        description="how many layers, counted from the first, mix their kernels from experts; or a list with one true "
        "or false per layer",
    )
    experts: Positive = Field(8, description="kernels that a dynamic layer mixes [E]")
    mixing: Literal["query", "map", "both"] = Field("both", description="what the mixture weights are computed from")
    mixing_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="dropout on the mixture weights")
    residual: bool = Field(True, description="add each layer's input to its output")
    batch_norm: bool = Field(True, description="normalise before every layer and after the last")
    norm_over: Literal["all", "valid"] = Field(
        "all", description="cells that normalisation takes its statistics over: all (as published), or proposals only"
    )

    @property
    def dynamic(self) -> tuple[bool, ...]:
        """Whether each layer is dynamic."""
        if isinstance(self.dynamic_layers, tuple):
            return self.dynamic_layers
        return tuple(index < self.dynamic_layers for index in range(self.layers))

    @model_validator(mode="after")
    def _check(self) -> "MapConfig":
        if isinstance(self.dynamic_layers, int) and self.dynamic_layers > self.layers:
            raise ValueError(f"dynamic_layers={self.dynamic_layers} exceeds layers={self.layers}; lower dynamic_layers")
        if len(self.dynamic) != self.layers:
            raise ValueError(
                f"dynamic_layers lists {len(self.dynamic)} layers for layers={self.layers}; give one flag per layer"
            )
        return self


class CDNLoss(FusedMapLoss):
    """Scaled-IoU cross-entropy and attention diversity."""

    max_iou: Fraction = Field(0.9, description="IoU that is rescaled to target 1")
    attention_beta: Annotated[float, Field(ge=0)] = Field(0.1, description="weight of the attention-diversity loss [β]")
    attention_lambda: Annotated[float, Field(ge=0)] = Field(0.3, description="its diagonal target [λ]")


class CDNConfig(FusedMapConfig):
    """The whole network."""

    loss = CDNLoss
    label = "CDN"
    per_layer: ClassVar = {"map.kernel_size": ("map.layers", int), "map.dynamic_layers": ("map.layers", bool)}

    name: Literal["cdn"] = Field("cdn", description="family of the model; it determines the keys of model and loss")
    query: QueryConfig = QueryConfig()
    clip_pool: Literal["attention", "mean"] = Field(
        "attention", description="how frames become clips: sequential frame attention, or their mean"
    )
    attention_steps: Positive = Field(3, description="steps of the sequential frame attention [J]")
    attention_size: Positive = Field(256, description="width of the frame attention")
    map: MapConfig = MapConfig()

    def build(self, data: DataConfig, loss: LossConfig) -> "CDN":
        """Returns the network."""
        from cdn_tune.model.cdn.network import CDN

        return CDN(self, data.feature_size, data.word_size, cast(CDNLoss, loss))

    def summary(self) -> str:
        """Returns sizes and variant."""
        return (
            f"{self.map_summary}, hidden {self.hidden}, {self.map.layers} layers "
            f"({self.map.dynamic_layers} dynamic), {self.map.kernels}{self.switches_summary}"
        )
