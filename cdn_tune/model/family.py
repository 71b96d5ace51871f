"""The network side of a model family: the interface that training, evaluation, prediction, export and reports use.

Shape letters: B batch, Q queries, V windows of a video, P candidate spans, S clips, T frames, J attention steps.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cdn_tune.config import ModelConfig, Nms
from cdn_tune.model.kernels.products import MixedShape
from cdn_tune.moments.nms import Suppression, suppress


class Batch(Protocol):
    """What a loss reads of a batch (`data.dataset.Batch` is one) beside the tensors that `config.inputs` names."""

    @property
    def durations(self) -> Tensor:
        """Length of each query's video, seconds, float64 [B]."""

    @property
    def moments(self) -> Tensor:
        """Annotated start and end, seconds, float64 [B, 2]; of the first moment where several answer a query.

        Unless `config.needs_moment`, a query that nothing answers has the empty moment [0, 0].
        """

    @property
    def all_moments(self) -> Tensor:
        """Start and end of all annotated moments, seconds, NaN-padded, float64 [B, M, 2]."""


class Losses(NamedTuple):
    """The loss of a batch, means over its queries, float32: the total that is minimised, and its recorded parts."""

    total: Tensor  # a scalar
    parts: Mapping[str, Tensor]  # scalars by the names of `MomentModel.loss_names`, without weights


class Spans(NamedTuple):
    """Candidate answers to B queries.

    Attributes:
        spans: Start and end in seconds, float64 [B, P, 2].
        scores: Higher is better, float32 [B, P]; NaN where the network's output is not finite, -inf where there is no
            candidate. Soft suppression and voting need scores of at least 0.
    """

    spans: Tensor
    scores: Tensor

    def has_nan(self) -> bool:
        """Returns whether a candidate's score or span is NaN."""
        return bool((self.scores.isnan() | (self.spans.isnan().any(dim=2) & (self.scores > -torch.inf))).any())


class ScoreMap(NamedTuple):
    """Scores of all moments that begin and end between clips."""

    scores: Tensor  # in [0, 1], of every pair of first and last clip [B, S, S]
    mask: Tensor  # which of the pairs are candidates, bool [S, S]


class Pictures(NamedTuple):
    """The pictures of an output; None where a family has no such thing."""

    score_map: ScoreMap | None = None
    attention: Tensor | None = None  # weights of the frames in every attention step [B, J, T]


class Rows(NamedTuple):
    """Values over the time of B queries' videos, a row of cells above the next: how an answer came about.

    Attributes:
        title: What they are, in a few words.
        values: Per row, at least 0, of equal parts of the time [B, steps of the row]; what lies past a video's end is
            left out.
        names: Of the first rows; those after them are the query's words, in order.
        seconds: Where the rows begin and end, float64 [B, 2]; None: with the video.
    """

    title: str
    values: tuple[Tensor, ...]
    names: tuple[str, ...] = ()
    seconds: Tensor | None = None


class Memory(NamedTuple):
    """Bytes that training takes beside weights and what the backward pass keeps.

    Attributes:
        bound: A generous bound on all that one query takes, found without computing anything.
        temporary: What comes and goes in the dearest layer, per query.
        at_once: The same, however many queries there are.
    """

    bound: int
    temporary: int
    at_once: int


class Graph(NamedTuple):
    """A network in a form that `torch.export` can trace.

    Attributes:
        module: Takes features [1, T, D], words [1, L, W] and word mask [1, L]; returns one tensor of scores in [0, 1].
        output: Description of that tensor for the model card.
    """

    module: nn.Module
    output: str


class MomentModel(nn.Module):
    """The network of a model family.

    `forward` takes the tensors that the family's `config.inputs` names, those of the video first and those of the batch
    last (they may be absent), and returns an output of any type. A family implements `forward`, `loss` and `spans`;
    everything else has a default. State of training, such as a running normaliser of the loss, is a parameter or a
    buffer: it is saved and restored with the weights. Weights with more than one dimension decay, unless their name
    ends in ``bias``. `loss` and `spans` run in float32, outside autocast.

    Attributes:
        config: The family's configuration, which built it.
        loss_names: Names of the loss's parts, in the order in which they are recorded.
        most_spans: Most values per query that scoring one window of a video holds at once; bounds memory.
        text_part: Name of the module that encodes the query, whose learning rate is `optim.text_lr`.
        reads_padding: Whether a query's encoding depends on how far it is padded; then queries are answered one by one.
        static_step: Whether what a training step launches on a GPU depends on the shapes of a batch alone, so that it
            can be recorded once and replayed: no value is read back, no shape depends on one, no number of the host
            changes. Queries may then be padded further.
    """

    config: ModelConfig
    loss_names: tuple[str, ...] = ()
    most_spans: int = 1 << 12
    text_part: str = "query"
    reads_padding: bool = False
    static_step: bool = False

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> Losses:
        """Returns the training loss of a batch on the network's device, given what `forward` returned for it."""
        raise NotImplementedError

    @abstractmethod
    def spans(self, output: Any, durations: Tensor) -> Spans:
        """Returns candidate spans of videos of these durations, in seconds [B], on the device of the output."""
        raise NotImplementedError

    @property
    def mixed_shapes(self) -> tuple[MixedShape, ...]:
        """The shapes of its convolutions with a kernel per sample, each once; none by default."""
        return ()

    def use_products(self, products: Mapping[MixedShape, str]) -> None:
        """Sets how a GPU multiplies in these, by names of `kernels.products`; as published where it is not said."""

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch, counted from 1, and before the steps that are left of one."""

    def start_step(self, queries: int) -> None:
        """Called before the losses of an optimiser step, whose whole batch has so many queries, over all workers."""

    def end_step(self, total: Callable[[Tensor], Tensor]) -> None:
        """Called after the losses of a step; `total` returns the sum of all workers' tensors."""

    @property
    def suppression(self) -> Suppression:
        """How overlapping answers are suppressed unless `eval` asks for something else; by default greedy NMS."""
        return Suppression()

    def suppress(
        self,
        found: Spans,
        limit: int,
        threshold: float,
        kind: Literal["hard", "soft"] | None = None,
        sigma: float | None = None,
        voting: float | None = None,
    ) -> Spans:
        """Returns the best `limit` spans per query, best first, NaN where there are fewer.

        Args:
            found: The candidates of all windows of a video side by side.
            limit: How many.
            threshold: As of `config.Nms`, like the rest; what is None is as in `suppression`.
            kind: Hard or soft.
            sigma: Decay of the soft kind.
            voting: IoU from which candidates move an answer.
        """
        nms = self.complete(Nms(threshold, kind, sigma, voting))
        return Spans(*suppress(found.scores, found.spans, limit, replace(self.suppression, **nms._asdict())))

    def complete(self, nms: Nms) -> Nms:
        """Returns settings of suppression with nothing left None."""
        own = self.suppression
        return Nms(*(getattr(own, name) if value is None else value for name, value in nms._asdict().items()))

    def pictures(self, output: Any) -> Pictures:  # noqa: ARG002 - for families that have some
        """Returns the pictures of an output; none by default."""
        return Pictures()

    def rows(self, output: Any, *inputs: Tensor) -> tuple[Rows, ...]:  # noqa: ARG002 - for families that have some
        """Returns what the report draws along the timeline, of the output of these inputs of `forward`; none by default.

        Frame attention, which `pictures` has, is drawn without this.
        """
        return ()

    def encode(self, *video: Tensor) -> Any:
        """Returns encodings of V windows that `answer` takes, computed once for any number of queries.

        By default the window's input itself: a family that has one tensor per video runs whole for every query.
        """
        (encoded,) = video
        return encoded

    def answer(self, encoded: Any, *query: Tensor) -> list[Any]:
        """Returns one output per window that `encode` has encoded, each for all of Q queries.

        `query` are the tensors that `config.inputs.query` names.
        """
        count = len(query[0])
        return [self(window.expand(count, *window.shape), *query) for window in encoded]

    def memory(self, frames: int, batch: int, dtype: torch.dtype, device: torch.device) -> Memory | None:  # noqa: ARG002
        """Returns an estimate of training's working memory; None: it is measured by a forward pass.

        Args:
            frames: Frame features per video T.
            batch: Queries in a batch.
            dtype: Format of the forward pass.
            device: Where it computes.
        """
        return None

    def graph(self) -> Graph | None:
        """Returns the network as a graph of one video and one query; None: it is exported without one."""
        return None

    def inputs_of(self, batch: object) -> tuple[Tensor, ...]:
        """Returns the tensors of a batch that `forward` takes."""
        inputs = self.config.inputs
        return tuple(getattr(batch, name) for name in (*inputs.video, *inputs.query, *inputs.batch))
