"""SnAG's configuration (Mu, Mo, Li, CVPR 2024; arXiv 2404.02257). Imports no torch.

Every key names what the published option does; in brackets the published option.
"""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field, model_validator

from cdn_tune.config.family import SEQUENCES, Inputs, LossConfig, ModelConfig
from cdn_tune.config.keys import Frozen, Positive

if TYPE_CHECKING:
    from cdn_tune.config.experiment import DataConfig
    from cdn_tune.model.snag.network import SnAG

Count = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class Dropouts(Frozen):
    """Regularisation of one part of the network."""

    dropout: Probability = Field(0.1, description="dropout after attention and feed-forward layers [proj_pdrop]")
    attention_dropout: Probability = Field(0.0, description="dropout on attention weights [attn_pdrop]")
    path_dropout: Probability = Field(0.1, description="stochastic depth: branches dropped per sample [path_pdrop]")


class TextConfig(Dropouts):
    """The text encoder."""

    encoder: Literal["transformer", "identity"] = Field(
        "transformer", description="transformer over the words, or the words as they are with a pooled token [name]"
    )
    hidden: Positive = Field(128, description="text width [embd_dim]")
    layers: Count = Field(5, description="transformer blocks [n_layers]")
    heads: Positive = Field(4, description="attention heads, which divide the width [n_heads]")
    words: Positive = Field(16, description="words read in training; longer queries are cut [max_seq_len]")
    positions: bool = Field(True, description="add sinusoidal positions [use_abs_pe]")
    background: bool = Field(
        True,
        description="put a learnt token (transformer) or a pooled one (identity) before the words [use_bkgd_token]",
    )


class VideoConfig(Dropouts):
    """The video encoder, whose levels are the pyramid."""

    hidden: Positive = Field(256, description="video width, also of fusion and heads [embd_dim]")
    convs: Count = Field(2, description="convolutions before the transformer [arch, first]")
    stem: Count = Field(1, description="transformer blocks at full length [arch, second]")
    levels: Positive = Field(6, description="pyramid levels, each of half the length [arch, third]")
    window: Count = Field(5, description="odd window of local attention; 0: attention to all [mha_win_size]")
    heads: Positive = Field(4, description="attention heads, which divide the width [n_heads]")
    length: Positive = Field(256, description="steps of the first level in training [max_seq_len]")
    stride: Positive = Field(1, description="input steps per step of the first level, a power of two [stride]")
    positions: bool = Field(True, description="add sinusoidal positions [use_abs_pe]")

    @property
    def coarsest(self) -> int:
        """Steps of the first level per chunk of local attention at the last: a length is a multiple of it."""
        return (1 << (self.levels - 1)) * max(1, self.window - 1)

    @model_validator(mode="after")
    def _check(self) -> "VideoConfig":
        if self.window and self.window % 2 == 0:
            raise ValueError(f"window={self.window} is even; use {self.window - 1} or {self.window + 1}")
        halvings = int(math.log2(self.stride))
        if 2**halvings != self.stride:
            raise ValueError(f"stride={self.stride} is no power of two; use {2**halvings} or {2 ** (halvings + 1)}")
        if halvings > self.convs:
            raise ValueError(f"stride={self.stride} needs {halvings} convs to halve the input, not {self.convs}")
        step = 2 ** (self.levels - 1)
        if self.length % step:
            below, above = self.length // step * step, -(-self.length // step) * step
            near = f"{below} or {above}" if below else above
            raise ValueError(f"length={self.length} cannot be halved for {self.levels} levels; use {near}")
        return self


class FusionConfig(Dropouts):
    """Cross-attention of video to text, at every level with the same weights."""

    layers: Positive = Field(2, description="layers [n_layers]")
    heads: Positive = Field(4, description="attention heads, which divide the video's width [n_heads]")
    mode: Literal["affine", "adaln"] = Field(
        "affine", description="scale and shift by what was attended: the features, or normalised ones [xattn_mode]"
    )


class HeadConfig(Frozen):
    """The two heads, shared by all levels."""

    score_layers: Count = Field(2, description="convolutions before the score [cls_head.n_layers]")
    offset_layers: Count = Field(2, description="convolutions before the offsets [reg_head.n_layers]")
    prior: Probability = Field(0.0, description="score that an untrained model gives; 0: a half [prior_prob]")


class PointConfig(Frozen):
    """Which moments each level is to find."""

    first_range: Annotated[float, Field(gt=0)] = Field(
        8.0, description="longest offset, in steps, that the first level regresses [regression_range]"
    )
    overlap: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="shortest offset of a level over the longest of the one before [sigma]"
    )


class EvaluationConfig(Frozen):
    """From scored points to candidates; `eval.nms` and its neighbours suppress those."""

    min_score: Probability = Field(0.001, description="candidates with less are dropped [pre_nms_thresh]")
    candidates: Positive = Field(2000, description="best candidates kept before suppression [pre_nms_topk]")
    min_length: Annotated[float, Field(ge=0)] = Field(
        0.1, description="candidates of fewer steps are dropped [seg_len_thresh]"
    )


class SnAGLoss(LossConfig):
    """Focal loss of points, IoU loss of their spans."""

    centre_radius: Annotated[float, Field(gt=0)] | None = Field(
        1.5,
        description="points within so many of their level's steps of the moment's centre are positive; null: all "
        "within the moment [center_sampling, center_sampling_radius]",
    )
    regression: Literal["diou", "iou"] = Field("diou", description="IoU loss, with or without distance [reg_loss]")
    regression_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="its weight [loss_weight]")
    normaliser: Annotated[float, Field(gt=0)] = Field(
        400.0, description="positive points of a batch that the running normaliser starts from [loss_norm]"
    )
    normaliser_momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="share of the normaliser that stays at each step [loss_norm_momentum]"
    )
    normaliser_resumes: bool = Field(
        True, description="checkpoints hold the running normaliser; the published code starts it anew at every resume"
    )


class SnAGConfig(ModelConfig):
    """The whole network. Defaults are the published settings for Charades-STA."""

    loss = SnAGLoss
    inputs = Inputs(video=SEQUENCES, batch=("rows",))
    label: ClassVar[str] = "SnAG"

    name: Literal["snag"] = Field("snag", description="family of the model; it determines the keys of model and loss")
    text: TextConfig = TextConfig()
    video: VideoConfig = VideoConfig()
    fusion: FusionConfig = FusionConfig()
    head: HeadConfig = HeadConfig()
    points: PointConfig = PointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def build(self, data: "DataConfig", loss: LossConfig) -> "SnAG":
        """Returns the network."""
        from cdn_tune.model.snag.network import SnAG

        return SnAG(self, data.feature_size, data.word_size, cast(SnAGLoss, loss))

    def check(self, data: "DataConfig") -> None:
        """Raises a `ValueError` if training may read more steps than there are positions for."""
        video, steps = self.video, data.sequence.length
        if steps > video.length * video.stride:
            step = 2 ** (video.levels - 1)
            enough = -(-steps // (video.stride * step)) * step
            raise ValueError(
                f"data.sequence.length={steps} is more than model.video.length={video.length} steps of "
                f"model.video.stride={video.stride}; set model.video.length={enough}"
            )

    def summary(self) -> str:
        """Returns sizes and variant."""
        video, text = self.video, self.text
        window = f"window {video.window}" if video.window else "global attention"
        return (
            f"{video.levels} levels of {video.length} steps, {window}, hidden {video.hidden}, text {text.layers} x "
            f"{text.hidden} ({text.encoder}), {self.fusion.mode} fusion"
        )

    @model_validator(mode="after")
    def _check(self) -> "SnAGConfig":
        video, fusion = self.video, self.fusion
        units = {
            "text": (self.text.hidden, f"{self.text.heads}", math.lcm(2, self.text.heads)),
            "video": (video.hidden, f"{video.heads}, fusion: {fusion.heads}", math.lcm(2, video.heads, fusion.heads)),
        }
        for part, (width, heads, unit) in units.items():
            if width % unit:  # even, since sinusoids come in pairs
                nearest = max(math.floor(width / unit + 0.5), 1) * unit
                raise ValueError(f"{part}.hidden={width} is no even multiple of its heads ({heads}); use {nearest}")
        return self
