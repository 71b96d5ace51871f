"""An experiment: everything that determines one trial, in one frozen object."""

import itertools
from collections.abc import Container
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from cdn_tune.config.family import LossConfig, ModelConfig
from cdn_tune.config.keys import Frozen, Positive
from cdn_tune.config.tables import LAYOUTS, SCHEDULES, find_metric, metric_names
from cdn_tune.config.tracking import TrackingConfig
from cdn_tune.config.yaml import shown
from cdn_tune.errors import ConfigError
from cdn_tune.model import families

_FORMER = "checkpoint_minutes"  # name of `train.checkpoint` in earlier versions
_FORMER_MINUTES: dict[float, str] = {
    0: "epoch",
    30: "auto",
}  # its least value and its default, by what they have become
_SEVERAL = 20  # n and IoUs that a table of metrics has room for
Fraction = Annotated[float, Field(ge=0, le=1)]
Fractions = Annotated[tuple[Fraction, ...], Field(strict=False, min_length=1, max_length=_SEVERAL)]
Ranks = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1, max_length=_SEVERAL)]


# Keys that say where data lie. What the data are is told by their content, so these never tell two runs apart.
DATA_PATHS = ("data.root", "data.features", "data.word_vectors", "data.tokens")
# Keys that say how a machine computes the same, and where it is logged; a run may go on with others.
COMPUTING = ("train.cuda_graphs", *(f"tracking.{key}" for key in TrackingConfig.model_fields))

Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]
Shares = Annotated[tuple[Fraction, Fraction], Field(strict=False)]
Milestones = Annotated[tuple[Positive, ...], Field(strict=False)]


def renamed(key: str, value: Any) -> tuple[str, Any]:
    """Returns a dotted key of an experiment, and its value, under its present name."""
    if key != f"train.{_FORMER}":
        return key, value
    return "train.checkpoint", _FORMER_MINUTES.get(value, value) if isinstance(value, int | float) else value


class SequenceConfig(Frozen):
    """How families that read a video as a sequence see it; in brackets SnAG's published option."""

    form: Literal["fixed", "variable"] = Field(
        "fixed", description="fixed: a video is resized to `length` steps; variable: it is read as it is"
    )
    length: Positive = Field(
        256, description="steps of a video, if variable the most that training reads at once [max_vid_len]"
    )
    every: Positive = Field(1, description="only every n-th frame feature is read [downsample_rate]")
    normalise: bool = Field(False, description="each frame feature is divided by its length")
    clip_size: Positive = Field(1, description="frames that a frame feature was computed from")
    clip_stride: Positive = Field(1, description="frames from one frame feature's first to the next one's")
    fps: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="frames per second; if unset as many as make the frame features span the video"
    )
    crop: Shares | None = Field(
        None, description="if variable, least and greatest share of a video that training reads; null: all [crop_ratio]"
    )
    queries: Positive = Field(4, description="queries of a video that are trained on together, at most [max_num_text]")
    groups: Literal["all", "random"] = Field(
        "all",
        description="all: a video's queries are shared out among batches, if variable those that a part of it can hold "
        "together; random: each epoch some of them [group_method]",
    )

    @model_validator(mode="after")
    def _check(self) -> "SequenceConfig":
        if self.crop is not None and (self.form == "fixed" or not 0 < self.crop[0] <= self.crop[1]):
            raise ValueError(
                f"crop={list(self.crop)}, form={self.form}: needs form=variable, and shares such as [0.9, 1.0]"
            )
        if self.groups == "random" and self.form == "variable":
            raise ValueError("groups=random, form=variable: a part of a video may not hold any few; use groups=all")
        return self


class DataConfig(Frozen):
    """Where the data lies and how videos and queries are read."""

    dataset: Annotated[str, LAYOUTS]
    root: str = Field(
        description="folder with annotations, features and (if no path is given) word vectors; made absolute"
    )
    features: str | None = Field(
        None,
        description="HDF5 file with one dataset [frames, feature_size] per video: a path or a URL such as s3://...; "
        "the dataset's usual names if unset",
    )
    feature_size: Positive = Field(4096, description="size of a frame feature [D]")
    frames: Positive = Field(256, description="frame features a video is resampled to [T]")
    text: Literal["words", "tokens"] = Field(
        "words", description="a query is read as vectors of its words, or as a language model's features of its tokens"
    )
    word_vectors: str = Field(
        "glove.6B.300d.txt", description="word vectors in the GloVe text format: a path, or a file in root"
    )
    tokens: str = Field(
        "tokens.hdf5",
        description="of text tokens: HDF5 file of token features, from `cdn-tune data text`: a path, or a file in root",
    )
    word_size: Positive = Field(300, description="size of a word vector or token feature [W]")
    tokenizer: Literal["words", "legacy"] = Field(
        "words", description="words: punctuation-aware, lower-cased; legacy: split on spaces as the published code does"
    )
    unknown_words: Literal["zero", "subword"] = Field(
        "zero", description="words without a vector: zero, or the mean of the known words they are made of (subword)"
    )
    resampling: Literal["all", "legacy"] = Field(
        "all", description="all: average over every frame; legacy: leave the last frame out as the published code does"
    )
    cache_dtype: Literal["float32", "float16"] = Field(
        "float32",
        description="type of the clips in the node's cache (CDN_TUNE_CACHE); float16 halves it and rounds to 11 bits",
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share of training videos held out as val where the dataset has no val split (Charades-STA)"
    )
    sequence: SequenceConfig = SequenceConfig()

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: str) -> str:
        if not root:
            raise ValueError("root is empty; name the folder with the data")
        try:
            return root if "://" in root else str(Path(root).expanduser().absolute())
        except RuntimeError:
            raise ValueError(f"root {shown(root)} begins with the name of no user; write the path out") from None


class OptimConfig(Frozen):
    """Optimiser and learning-rate schedule."""

    name: Literal["adam", "adamw"] = Field("adam", description="adam or adamw (decoupled weight decay)")
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(1e-4, description="learning rate")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="decay of weight matrices and kernels; of biases and norms if `decay_all`"
    )
    decay_all: bool = Field(False, description="biases and norms decay too")
    betas: Betas = Field((0.9, 0.999), description="decay of the running means of gradients and of their squares")
    clip_norm: Annotated[float, Field(gt=0)] = Field(10.0, description="gradients are clipped at this global norm")
    schedule: Annotated[str, SCHEDULES] = "constant"
    milestones: Milestones = Field((), description="of schedule milestones: epochs after which the rate falls")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="optimiser steps of linear warm-up")
    warmup_epochs: Annotated[int, Field(ge=0)] = Field(0, description="the same in epochs, instead of in steps")
    warmup_from_zero: bool = Field(
        False, description="the first step of the warm-up has a rate of 0, as SnAG's code has it, and moves nothing"
    )
    text_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="learning rate of the part that encodes the query; that of the others if unset"
    )

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        if bool(self.milestones) != (self.schedule == "milestones"):
            raise ValueError(
                f"milestones={list(self.milestones)} with schedule={self.schedule}: schedule=milestones needs the "
                "epochs after which the rate falls, e.g. milestones=[8, 13], and no other takes them"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones={list(self.milestones)} must rise, e.g. {sorted(set(self.milestones))}")
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError(f"warmup_steps={self.warmup_steps}, warmup_epochs={self.warmup_epochs}: set one to 0")
        return self


class AugmentConfig(Frozen):
    """Random changes of the training queries, each with its probability."""

    crop: Fraction = Field(
        0.0, description="share of the queries whose video is cut to a random part that holds the moment"
    )
    crop_keep: Annotated[float, Field(gt=0, le=1)] = Field(0.9, description="least share of a video that a crop keeps")
    shift: Fraction = Field(
        0.0, description="share of the queries whose moment is cut out of the video and put in elsewhere"
    )
    negative: Fraction = Field(
        0.0, description="share of the queries in whose place one of another video is asked, which nothing answers"
    )

    @property
    def active(self) -> bool:
        """Whether any query may change."""
        return any((self.crop, self.shift, self.negative))


class TrainConfig(Frozen):
    """Length, batch and precision of the training."""

    epochs: Positive = Field(20, description="passes over the train split")
    batch_size: Positive = Field(32, description="global batch size, over all workers [B]: of what `batch_of` says")
    batch_of: Literal["queries", "videos"] | None = Field(
        None,
        description="queries, whatever their videos; or videos, each with all its queries, of families that read "
        "sequences with up to data.sequence.queries of them; unset: queries, of those families videos",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the forward pass; auto: bf16 on a GPU that has it, fp32 otherwise; fp16 scales the loss"
    )
    tf32: bool = Field(False, description="on a GPU, multiply and convolve float32 in TensorFloat-32")
    kernels: Literal["auto", "published", "rows", "cudnn", "triton", "fused"] = Field(
        "auto",
        description="how a GPU convolves with a kernel per query: one grouped convolution as published, matrix "
        "products of rows, a cuDNN call per query, Triton's kernels, the same with the end of the layer; auto: the "
        "fastest on the card, measured once; a CPU takes auto alone",
    )
    cuda_graphs: bool = Field(
        True, description="on a GPU, record steps of equal shapes and replay them, where the model allows it"
    )
    compile: bool = Field(False, description="compile the model with torch.compile")
    micro_batch: Positive | Literal["auto"] = Field(
        "auto",
        description="queries or videos, as `batch_of` says, that a worker computes at once; gradients add up to the "
        "batch; auto: as many as memory holds",
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="decay of the running mean of weights that is evaluated and kept; 0: the weights themselves"
    )
    ema_warmup: bool = Field(
        True, description="its first updates count more, so that untrained weights fade; SnAG's code: false"
    )
    patience: Annotated[int, Field(ge=0)] = Field(
        0, description="stop after so many epochs without a better val metric; 0: never"
    )
    eval_every: Positive = Field(1, description="val is evaluated after the first, every so many, and the last epoch")
    eval_queries: Positive | None = Field(
        None, description="training evaluates so many val queries, evenly spread; all if unset"
    )
    checkpoint: Literal["auto", "epoch"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        "auto",
        description="when the state and the best weights are written, besides at a stop and at the end; auto: after an "
        "epoch, once 20 times as long has passed as the last write took, and within one after half an hour at least; "
        "epoch: after every epoch; or so many minutes after the last write, within epochs too",
    )
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="before")
    @classmethod
    def _with_present_names(cls, values: Any) -> Any:
        if not isinstance(values, dict) or _FORMER not in values:
            return values
        if "checkpoint" in values:
            raise ValueError(
                f"checkpoint={shown(values['checkpoint'])}, {_FORMER}={shown(values[_FORMER])}: the latter is the "
                "former name; leave it out"
            )
        others = {key: value for key, value in values.items() if key != _FORMER}
        return {**others, "checkpoint": renamed(f"train.{_FORMER}", values[_FORMER])[1]}


class Nms(NamedTuple):
    """How answers that overlap a better one are suppressed; what is None is as the model's family was published."""

    threshold: float = 0.5  # hard: IoU above which they are dropped
    kind: Literal["hard", "soft"] | None = None
    sigma: float | None = None  # soft: their scores are multiplied by exp(-IoU² / sigma)
    voting: float | None = None  # IoU from which candidates move an answer; 0: none do

    def __str__(self) -> str:
        soft = self.kind == "soft"
        parts = [f"soft NMS, sigma {self.sigma:g}" if soft else f"NMS threshold {self.threshold:g}"]
        return ", ".join([*parts, f"voting from IoU {self.voting:g}"] if self.voting else parts)


class EvalConfig(Frozen):
    """How retrieval is measured, and which val metric chooses epochs and trials."""

    nms: Literal["hard", "soft"] | None = Field(
        None,
        description="non-maximum suppression: a moment that overlaps a better one is dropped (hard), or its score "
        "decays (soft); as the family was published if unset: hard, soft for snag",
    )
    nms_threshold: Fraction = Field(
        0.5, description="hard: a moment overlapping a better one by more than this IoU is dropped"
    )
    nms_sigma: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="soft: scores are multiplied by exp(-IoU² / sigma); 0.9 if unset"
    )
    nms_voting: Fraction | None = Field(
        None,
        description="an answer becomes the mean of the candidates with at least this IoU, weighted by score; 0: it "
        "stays; as the family was published if unset: 0, 0.95 for snag",
    )
    recalls: Ranks = Field((1, 5), description="n of R@n")
    ious: Fractions = Field((0.5, 0.7), description="IoU thresholds")
    metric: str = Field(
        "R1@0.5",
        description="val metric that chooses epochs and trials: R<n>@<iou>, mIoU, dR<n>@<iou>, allR<n>@<iou>, "
        "mAP@<iou> or mAP",
    )
    closed: bool = Field(
        False, description="an IoU equal to the threshold is a hit too, as the published code of MMN and SnAG counts"
    )
    batch_size: Positive = Field(64, description="queries scored at once, over all workers")

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        find_metric(metric)
        return metric

    @property
    def suppression(self) -> Nms:
        """How overlapping answers are suppressed."""
        return Nms(self.nms_threshold, self.nms, self.nms_sigma, self.nms_voting)

    def with_suppression(self, nms: Nms) -> "EvalConfig":
        """Returns the section with other settings of suppression."""
        keys = ("nms_threshold", "nms", "nms_sigma", "nms_voting")
        return self.model_validate({**self.plain(), **dict(zip(keys, nms, strict=True))})

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that val is measured by, in table order."""
        return tuple(dict.fromkeys((*metric_names(self.recalls, self.ious, on_val=True), self.metric)))

    def test_metrics(self, several: bool = True) -> tuple[str, ...]:
        """Returns the names of the metrics that the test split is measured by, in table order.

        These are all there are; unless queries have `several` true moments, without those that tell nothing then.
        """
        return tuple(dict.fromkeys((*metric_names(self.recalls, self.ious, several=several), self.metric)))


class Experiment(Frozen):
    """One trial, completely."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)] = Field(
        description="names the run folder, runs/<name>"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="seeds weights, order and dropout")
    data: DataConfig
    model: SerializeAsAny[ModelConfig] = Field(default_factory=families.default)
    loss: SerializeAsAny[LossConfig] = Field(default_factory=lambda data: data.get("model", families.default()).loss())
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    tracking: TrackingConfig = Field(TrackingConfig(), exclude=True)  # of this command: no record of a run holds it

    @field_validator("model", mode="wrap")
    @classmethod
    def _of_family(cls, value: Any, _: ValidatorFunctionWrapHandler) -> ModelConfig:
        name = value.name if isinstance(value, ModelConfig) else families.name_in({"model": value})
        try:
            family = families.family(name)
        except ConfigError as error:
            fault = PydanticCustomError("value_error", "{fault}", {"fault": str(error)})
            raise ValidationError.from_exception_data(
                "model", [InitErrorDetails(type=fault, loc=("name",), input=name)]
            ) from None
        return family.model_validate(value)

    @field_validator("loss", mode="wrap")
    @classmethod
    def _of_its_family(cls, value: Any, _: ValidatorFunctionWrapHandler, info: ValidationInfo) -> LossConfig:
        model = info.data.get("model")  # absent where it was refused
        found: LossConfig = value if model is None else model.loss.model_validate(value)
        return found

    def further_seeds(self, count: int, used: Container[int | None] = ()) -> list[int]:
        """Returns the seeds under which it is trained again: those after its own, without used ones."""
        after = ((self.seed + 1 + place) % 2**32 for place in itertools.count())
        return list(itertools.islice((seed for seed in after if seed not in used), count))

    @property
    def steps(self) -> int:
        """Frame features of a video that training reads at once, at most."""
        return self.data.sequence.length if self.model.inputs.sequences else self.data.frames

    @property
    def batch_of(self) -> Literal["queries", "videos"]:
        """Of what `train.batch_size` is a number."""
        return self.train.batch_of or ("videos" if self.model.inputs.sequences else "queries")

    @property
    def sample_queries(self) -> int:
        """Queries of one of these, at most; 1 where videos are read with all of them, which the data alone tell."""
        return self.data.sequence.queries if self.model.inputs.sequences else 1

    @property
    def batch_queries(self) -> int:
        """Queries of a batch, at most; as many as videos where the data alone tell."""
        return self.train.batch_size * self.sample_queries

    @model_validator(mode="after")
    def _check(self) -> "Experiment":
        self.model.check(self.data)
        self._check_batch()
        self._check_augment()
        return self

    def _check_batch(self) -> None:
        inputs, name = self.model.inputs, self.model.name
        if inputs.sequences and self.train.batch_of == "queries":
            raise ValueError(
                f"train.batch_of=queries: model.name={name} reads some queries of each video together; leave it out, "
                "and for one query of each set data.sequence.queries=1"
            )
        if self.train.batch_of == "videos" and not inputs.sequences and "videos" not in inputs.batch:
            raise ValueError(
                f"train.batch_of=videos: model.name={name} does not tell which queries have the same video; use queries"
            )

    def _check_augment(self) -> None:
        augment, name = self.train.augment, self.model.name
        if augment.active and self.model.inputs.sequences:
            raise ValueError(
                f"train.augment changes frame features of a fixed length, which model.name={name} does not read; set "
                "crop, shift and negative to 0, and for crops data.sequence.crop"
            )
        if augment.negative and (needs := self.model.needs_moment):
            raise ValueError(
                f"train.augment.negative={augment.negative:g}: the loss of {needs} needs a moment for every query; set "
                "it to 0"
            )
