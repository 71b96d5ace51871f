"""CDN's configuration (paper: Cross-modal Dynamic Networks, IEEE TMM; its letters in brackets). Imports no torch."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field, model_validator

from cdn_tune.config.experiment import DataConfig, Fraction
from cdn_tune.config.family import LossConfig, ModelConfig
from cdn_tune.config.keys import Frozen, Positive, PositiveTuple

if TYPE_CHECKING:
    from cdn_tune.model.cdn.network import CDN

Layers = Annotated[int, Field(ge=1, le=1000)]
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


class MapConfig(Frozen):
    """The convolution stack over the temporal map."""

    layers: Layers = Field(8, description="convolution layers [N]")
    kernel_size: Positive | PositiveTuple = Field(
        5, description="odd kernel size [K], one for all layers or a list with one per layer"
    )
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
    def kernel_sizes(self) -> tuple[int, ...]:
        """One kernel size per layer."""
        return (self.kernel_size,) * self.layers if isinstance(self.kernel_size, int) else self.kernel_size

    @property
    def dynamic(self) -> tuple[bool, ...]:
        """Whether each layer is dynamic."""
        if isinstance(self.dynamic_layers, tuple):
            return self.dynamic_layers
        return tuple(index < self.dynamic_layers for index in range(self.layers))

    @model_validator(mode="after")
    def _check(self) -> "MapConfig":
        if len(self.kernel_sizes) != self.layers:
            raise ValueError(
                f"kernel_size lists {len(self.kernel_sizes)} sizes for layers={self.layers}; give one size per layer"
            )
        for size in self.kernel_sizes:
            if size % 2 == 0:
                raise ValueError(
                    f"kernel_size {size} is even; a kernel needs a centre cell: use {max(size - 1, 1)} or {size + 1}"
                )
        if isinstance(self.dynamic_layers, int) and self.dynamic_layers > self.layers:
            raise ValueError(f"dynamic_layers={self.dynamic_layers} exceeds layers={self.layers}; lower dynamic_layers")
        if len(self.dynamic) != self.layers:
            raise ValueError(
                f"dynamic_layers lists {len(self.dynamic)} layers for layers={self.layers}; give one flag per layer"
            )
        return self


class CDNLoss(LossConfig):
    """Scaled-IoU cross-entropy and attention diversity."""

    min_iou: Fraction = Field(0.5, description="IoU that is rescaled to target 0")
    max_iou: Fraction = Field(0.9, description="IoU that is rescaled to target 1")
    attention_beta: Annotated[float, Field(ge=0)] = Field(0.1, description="weight of the attention-diversity loss [β]")
    attention_lambda: Annotated[float, Field(ge=0)] = Field(0.3, description="its diagonal target [λ]")

    @model_validator(mode="after")
    def _check(self) -> "CDNLoss":
        if self.min_iou >= self.max_iou:
            raise ValueError(f"min_iou={self.min_iou} must be below max_iou={self.max_iou}")
        return self


class CDNConfig(ModelConfig):
    """The whole network."""

    loss = CDNLoss
    label = "CDN"
    per_layer: ClassVar = {"map.kernel_size": ("map.layers", int), "map.dynamic_layers": ("map.layers", bool)}
    has_score_map = True

    name: Literal["cdn"] = Field("cdn", description="family of the model; it determines the keys of model and loss")
    clips: Annotated[int, Field(ge=2, le=4096)] = Field(16, description="clips a video is divided into [S]")
    hidden: Positive = Field(512, description="hidden size [H]")
    query: QueryConfig = QueryConfig()
    clip_pool: Literal["attention", "mean"] = Field(
        "attention", description="how frames become clips: sequential frame attention, or their mean"
    )
    attention_steps: Positive = Field(3, description="steps of the sequential frame attention [J]")
    attention_size: Positive = Field(256, description="width of the frame attention")
    proposals: Literal["pool", "conv"] = Field("pool", description="how clips become moments: max-pooling, convolution")
    scale_layers: PositiveTuple | None = Field(
        None,
        description="moment lengths per stride 1, 2, 4, ...; derived from clips when not given ([16] for 16 clips, "
        "[16, 8, 8, 8] for 128)",
    )
    map: MapConfig = MapConfig()

    @property
    def scales(self) -> tuple[int, ...]:
        """The scale layers, given or derived."""
        return self.scale_layers if self.scale_layers is not None else derive_scale_layers(self.clips)

    def build(self, data: DataConfig, loss: LossConfig) -> "CDN":
        """Returns the network."""
        from cdn_tune.model.cdn.network import CDN

        return CDN(self, data.feature_size, data.word_size, cast(CDNLoss, loss))

    def check(self, data: DataConfig) -> None:
        """Raises a `ValueError` if the frames cannot be divided into clips."""
        if data.frames % self.clips:
            raise ValueError(
                f"model.clips={self.clips} does not divide data.frames={data.frames}; "
                f"choose data.frames={data.frames - data.frames % self.clips or self.clips}"
            )

    def summary(self) -> str:
        """Returns sizes and variant."""
        sizes = "/".join(map(str, dict.fromkeys(self.map.kernel_sizes)))
        return (
            f"{self.proposals} proposals, {self.clips} clips, hidden {self.hidden}, {self.map.layers} layers "
            f"({self.map.dynamic_layers} dynamic), kernel {sizes}"
        )

    @property
    def grid(self) -> int:
        """The clips."""
        return self.clips

    @model_validator(mode="after")
    def _check(self) -> "CDNConfig":
        reach = sum(count * 2**level for level, count in enumerate(self.scales))
        if reach != self.clips:
            raise ValueError(
                f"scale_layers {list(self.scales)} reach moments of {reach} clips, but clips={self.clips}; "
                "the sum of count * stride (1, 2, 4, ...) must equal clips"
            )
        return self


def derive_scale_layers(clips: int) -> tuple[int, ...]:
    """Returns the sparse pattern of 2D-TAN (arXiv 1912.03590) for a number of clips.

    Raises:
        ValueError: If `clips` is above 16 and not 16 times a power of two.
    """
    if clips <= 16:
        return (clips,)
    levels = (clips // 16).bit_length() - 1
    if clips != 16 << levels:
        raise ValueError(f"clips={clips} has no derived scale_layers; use 16, 32, 64, 128, ... or set scale_layers")
    return (16,) + (8,) * levels
