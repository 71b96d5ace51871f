"""What configurations of families over a temporal map have in common. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cdn_tune.config.experiment import DataConfig, Fraction
from cdn_tune.config.family import Inputs, LossConfig, ModelConfig
from cdn_tune.config.keys import Frozen, Positive, PositiveTuple

Layers = Annotated[int, Field(ge=1, le=1000)]
Count = Annotated[int, Field(ge=0, le=1000)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Joint = Annotated[Positive, Field(description="size in which moments and sentences are compared [J]")]
ScorePower = Annotated[
    Weight,
    Field(description="exponent of the contrastive score in the score of a moment; 0: the other score alone"),
]


class MapModelConfig(ModelConfig):
    """A network whose candidates are the cells of a temporal map over the clips of a video."""

    has_score_map = True

    clips: Annotated[int, Field(ge=2, le=4096)] = Field(16, description="clips a video is divided into [S]")
    hidden: Positive = Field(512, description="hidden size [H]")
    proposals: Literal["pool", "conv"] = Field("pool", description="how clips become moments: max-pooling, convolution")
    scale_layers: PositiveTuple | None = Field(
        None,
        description="moment lengths per stride 1, 2, 4, ...; derived from clips when not given ([16] for 16 clips, "
        "[16, 8, 8, 8] for 128)",
    )

    @property
    def scales(self) -> tuple[int, ...]:
        """The scale layers, given or derived."""
        return self.scale_layers if self.scale_layers is not None else derive_scale_layers(self.clips)

    @property
    def maps(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Clips and scale layers of every temporal map, the finest first."""
        return ((self.clips, self.scales),)

    def check(self, data: DataConfig) -> None:
        """Raises a `ValueError` if the frames cannot be divided into clips."""
        if data.frames % self.clips:
            raise ValueError(
                f"model.clips={self.clips} does not divide data.frames={data.frames}; "
                f"choose data.frames={data.frames - data.frames % self.clips or self.clips}"
            )

    @property
    def grid(self) -> int | None:
        """The clips."""
        return self.clips

    @property
    def map_summary(self) -> str:
        """The temporal map in a few words."""
        return f"{self.proposals} proposals, {self.clips} clips"

    @model_validator(mode="after")
    def _check_reach(self) -> "MapModelConfig":
        reach = sum(count * 2**level for level, count in enumerate(self.scales))
        if reach != self.clips:
            raise ValueError(
                f"scale_layers {list(self.scales)} reach moments of {reach} clips, but clips={self.clips}; "
                "the sum of count * stride (1, 2, 4, ...) must equal clips"
            )
        return self


class CrossAttentionConfig(Frozen):
    """Attention of clips to the words of the query, before the temporal map, after one of clips to clips."""

    layers: Count = Field(0, description="layers of attention to the words; 0: none")
    mode: Literal["affine", "adaln"] = Field(
        "affine", description="scale and shift by what was attended: the clips, or normalised ones"
    )
    stem: Count = Field(0, description="blocks of self-attention over the clips before, the same for every query")
    window: Annotated[int, Field(ge=0)] = Field(5, description="odd window of the stem's attention; 0: all clips")
    heads: Positive = Field(4, description="attention heads, which divide the hidden size")
    dropout: Probability = Field(0.1, description="dropout after attention and feed-forward layers")
    attention_dropout: Probability = Field(0.0, description="dropout on attention weights")
    path_dropout: Probability = Field(0.1, description="stochastic depth: branches dropped per sample")

    @property
    def is_on(self) -> bool:
        """Whether there is any attention."""
        return self.layers + self.stem > 0

    @model_validator(mode="after")
    def _check(self) -> "CrossAttentionConfig":
        if self.window and self.window % 2 == 0:
            raise ValueError(f"window={self.window} is even; use {self.window - 1} or {self.window + 1}")
        return self


class FusedMapConfig(MapModelConfig):
    """A network that fuses the map with the query, and its switches, all off by default."""

    inputs = Inputs(batch=("videos",))

    cross_attention: CrossAttentionConfig = CrossAttentionConfig()
    ends: Literal["none", "add", "concat"] = Field(
        "none",
        description="what becomes of a moment's first and last clip: nothing, they are added to it, or concatenated "
        "with it before a linear layer",
    )
    map_scales: Annotated[int, Field(ge=1, le=12)] = Field(
        1, description="temporal maps with the same kernels: of the clips, of half as many, of a quarter, and so on"
    )
    gates: bool = Field(False, description="multiply the output of every map layer by a gate between 0 and 1 per cell")

    contrastive: bool = Field(
        False,
        description="match moments and sentences before they are fused, as MMN does: two losses and a score",
    )
    joint: Joint = 256
    score_power: ScorePower = 0.5
    offsets: Literal["none", "diou", "l1giou"] = Field(
        "none",
        description="boundary offsets per moment, so that moments need not end on clips, and their loss: distance-IoU, "
        "or smooth L1 with generalised IoU",
    )

    @property
    def maps(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Clips and scale layers of every temporal map, the finest first; fewer than `map_scales` if clips run out."""
        found = [(self.clips, self.scales)]
        while len(found) < self.map_scales:
            clips, scales = found[-1]
            shorter = cut_scale_layers(scales, clips // 2)
            if clips % 2 or shorter is None:
                break
            found.append((clips // 2, shorter))
        return tuple(found)

    @property
    def grid(self) -> int | None:
        """The clips; None where offsets move the ends of moments."""
        return self.clips if self.offsets == "none" else None

    @property
    def needs_moment(self) -> str:
        """Contrast needs cells that match the sentence; of an empty moment every cell is to score 0."""
        return "model.contrastive=true" if self.contrastive else ""

    @property
    def switched_on(self) -> dict[str, object]:
        """The switches that are on, by dotted key: no published model has them."""
        attention = self.cross_attention
        switches = {
            "model.cross_attention.layers": (attention.layers, 0),
            "model.cross_attention.stem": (attention.stem, 0),
            "model.ends": (self.ends, "none"),
            "model.map_scales": (self.map_scales, 1),
            "model.gates": (self.gates, False),
            "model.contrastive": (self.contrastive, False),
            "model.offsets": (self.offsets, "none"),
        }
        return {key: value for key, (value, off) in switches.items() if value != off}

    @property
    def switches_summary(self) -> str:
        """The switches that are on, behind a comma each; empty where none is."""
        return "".join(f", {key.removeprefix('model.')}={value}" for key, value in self.switched_on.items())

    @model_validator(mode="after")
    def _check_switches(self) -> "FusedMapConfig":
        if len(self.maps) < self.map_scales:
            raise ValueError(
                f"map_scales={self.map_scales}: {self.clips} clips with scale_layers={list(self.scales)} make "
                f"{len(self.maps)} maps of half the size each; use map_scales={len(self.maps)}"
            )
        heads = self.cross_attention.heads
        if self.cross_attention.is_on and self.hidden % heads:
            nearest = max(round(self.hidden / heads), 1) * heads
            raise ValueError(f"hidden={self.hidden} is no multiple of cross_attention.heads={heads}; use {nearest}")
        return self


class ConvsConfig(Frozen):
    """Convolutions over the temporal map."""

    layers: Layers = Field(8, description="convolution layers [N]")
    kernel_size: Positive | PositiveTuple = Field(
        5, description="odd kernel size [K], one for all layers or a list with one per layer"
    )

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        """One kernel size per layer."""
        return (self.kernel_size,) * self.layers if isinstance(self.kernel_size, int) else self.kernel_size

    @property
    def kernels(self) -> str:
        """The kernel sizes in a few words."""
        return f"kernel {'/'.join(map(str, dict.fromkeys(self.kernel_sizes)))}"

    @model_validator(mode="after")
    def _check_kernels(self) -> "ConvsConfig":
        if len(self.kernel_sizes) != self.layers:
            raise ValueError(
                f"kernel_size lists {len(self.kernel_sizes)} sizes for layers={self.layers}; give one size per layer"
            )
        for size in self.kernel_sizes:
            if size % 2 == 0:
                raise ValueError(
                    f"kernel_size {size} is even; a kernel needs a centre cell: use {max(size - 1, 1)} or {size + 1}"
                )
        return self


class IouLoss(LossConfig):
    """Cross-entropy against rescaled IoU."""

    min_iou: Fraction = Field(0.5, description="IoU that is rescaled to target 0")
    max_iou: Fraction = Field(1.0, description="IoU that is rescaled to target 1")

    @model_validator(mode="after")
    def _check_order(self) -> "IouLoss":
        if self.min_iou >= self.max_iou:
            raise ValueError(f"min_iou={self.min_iou} must be below max_iou={self.max_iou}")
        return self


class ContrastiveLoss(IouLoss):
    """Besides, contrast of moments with sentences both ways."""

    contrastive_weight: Weight = Field(
        0.05, description="weight of both contrastive losses [w]; in cdn and tan where model.contrastive is on"
    )
    positives: Positive = Field(1, description="cells of highest IoU that are a query's positive moments [K]")
    margin: Weight = Field(0.4, description="what the cosine of positive pairs is lessened by")
    video_temperature: Temperature = Field(0.1, description="temperature of a moment against sentences")
    sentence_temperature: Temperature = Field(0.1, description="temperature of a sentence against moments")
    negative_iou: Fraction = Field(0.5, description="IoU from which a moment of the query's own video is no negative")
    sentence_iou: Fraction = Field(
        0.5, description="IoU of their moments from which another sentence of the video is no negative"
    )


class FusedMapLoss(ContrastiveLoss):
    """Besides, what the other switches of `FusedMapConfig` are trained by."""

    offset_weight: Weight = Field(1.0, description="weight of the loss of boundary offsets, where model.offsets is on")
    offset_iou: Fraction = Field(0.5, description="IoU with the truth from which a cell's offsets are trained")


Overlaps = Annotated[
    Literal["exact", "rounded"],
    Field(
        description="how suppression compares candidates: exact: IoU of whole clips; rounded: of rounded seconds, as "
        "the published code does, which decides by chance where an IoU equals the threshold",
    ),
]


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


def cut_scale_layers(scale_layers: tuple[int, ...], clips: int) -> tuple[int, ...] | None:
    """Returns the first of some scale layers, up to moments of so many clips (2 or more); None if none are as long."""
    kept, reach = [], 0
    for level, count in enumerate(scale_layers):
        kept.append(min(count, (clips - reach) >> level))
        reach += kept[-1] << level
        if reach == clips >= 2:
            return tuple(kept)
        if kept[-1] < count:
            break
    return None
