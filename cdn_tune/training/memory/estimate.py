"""Size of a trial's model and checkpoints, and the memory that its training needs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from cdn_tune.config import Experiment
from cdn_tune.data.batches import Samples
from cdn_tune.model.family import MomentModel
from cdn_tune.training.runs.checkpoint import LAST, build_model

_WAITING = 3  # batches assembled ahead of the step (data/batches.py)
_WORDS = 30  # of a query; most have fewer
_LSTM_KEEPS = 7  # values per hidden value, for the backward pass, beside the input: gates, cells and states
# Functions that autocast computes in 16-bit numbers.
_LOWERED = frozenset(["linear", "conv1d", "conv2d", "bmm", "matmul", "__matmul__"])


def model_without_memory(experiment: Experiment) -> MomentModel:
    """Returns the experiment's model on the meta device: shapes without values."""
    with torch.device("meta"):
        return experiment.model.build(experiment.data, experiment.loss).to("meta")  # with tables of given numbers


def count_parameters(experiment: Experiment) -> int:
    """Returns the number of parameters of the experiment's model."""
    return sum(parameter.numel() for parameter in model_without_memory(experiment).parameters())


def occupied_bytes(folder: Path) -> int:
    """Returns the bytes that a trial's checkpoints occupy on disk now."""
    return sum(path.stat().st_size for path in (folder / LAST).parent.glob("*.pt"))


def checkpoint_bytes(experiment: Experiment) -> int:
    """Returns the most bytes that a trial's checkpoints occupy on disk: the best, the last two, one being written."""
    _, weights, last = _sizes(experiment, model_without_memory(experiment))
    return weights + 3 * last


def written_bytes(experiment: Experiment, model: MomentModel | None = None) -> int:
    """Returns the bytes of a trial's state and best model, as they are written together; `model`: its own, if built."""
    _, weights, last = _sizes(experiment, model_without_memory(experiment) if model is None else model)
    return weights + last


def state_bytes(weights: int, trained: int, ema: bool) -> int:
    """Returns the bytes of a training's state: weights, Adam's two moments of trained ones, and their running mean."""
    return weights + 2 * trained + (weights if ema else 0)


def _sizes(experiment: Experiment, model: MomentModel) -> tuple[int, int, int]:
    """Returns the bytes of a model's parameters, of its parameters and buffers, and of the state of its training."""
    trained = _bytes(model.parameters())
    weights = trained + _bytes(model.buffers())
    return trained, weights, state_bytes(weights, trained, experiment.train.ema > 0)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training a trial needs on one worker."""

    weights: int  # the model's parameters and buffers
    gradients: int  # their gradients
    optimiser: int  # Adam's two moments
    activations: int  # what the backward pass keeps, per query of a video of its own
    temporary: int = 0  # what comes and goes in the dearest layer, per query, and on a CPU the batches that wait
    each: int = 1  # such queries that a sample of a batch, a query or a video with queries, counts as
    ema: int = 0  # the running mean of the weights; 0 without
    # weights in another order or number format that the backward pass keeps, and a layer's gradient before it is
    # added to the others; on a CPU also the copy that a checkpoint is written from, elsewhere kernels mixed for a
    # few queries at once
    copies: int = 0

    @property
    def sample(self) -> int:
        """Bytes of one sample."""
        return self.each * (self.activations + self.temporary)

    def total(self, samples: int) -> int:
        """Returns the bytes needed to compute so many samples at once."""
        return self.weights + self.gradients + self.optimiser + self.ema + self.copies + samples * self.sample


def counts(experiment: Experiment, batches: Sequence[Samples] | None = None) -> tuple[int, int]:
    """Returns as how many queries a sample counts in memory, and how many queries a batch has, at most.

    Without the `batches` of an epoch a video that is read with all its queries has one.
    """
    each, batch = experiment.sample_queries, experiment.batch_queries
    if batches is not None:
        each = max(len(sample) for samples in batches for sample in samples)
        batch = max(sum(map(len, samples)) for samples in batches)
    return 1 if experiment.model.per_video else each, batch


def estimate(
    experiment: Experiment,
    dtype: torch.dtype,
    device: torch.device | None = None,
    batches: Sequence[Samples] | None = None,
) -> MemoryEstimate:
    """Estimates the memory of a trial; nothing is allocated or computed if its family has an estimate of its own.

    For other families a forward pass of a few random queries is measured on the CPU, and temporary memory counted as
    much as what is kept.

    Args:
        experiment: The trial.
        dtype: Format of the forward pass.
        device: Where it computes; a GPU by default, if there is one.
        batches: Those of an epoch, if known; see `counts`.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model_without_memory(experiment).train()
    parameters, weights, state = _sizes(experiment, model)
    snapshot = state + weights if device.type == "cpu" else 0  # what is written: copies in main memory
    each, queries = counts(experiment, batches)
    known = model.memory(experiment.steps, queries, dtype, device)
    run = model if known is not None else build_model(experiment).train()
    two, three = (_kept(run, experiment, dtype, queries) for queries in (2, 3))
    waiting = _WAITING * experiment.steps * experiment.data.feature_size * 4 if device.type == "cpu" else 0
    return MemoryEstimate(
        weights=weights,
        gradients=parameters,
        optimiser=2 * parameters,
        activations=three - two,
        temporary=(known.temporary if known is not None else three - two) + waiting,
        each=each,
        ema=weights if experiment.train.ema else 0,
        # A CPU convolves in tiles wherever weights are large, without copies of them.
        copies=max(parameter.nbytes for parameter in model.parameters())
        + snapshot
        + (known.at_once if known is not None else 0)
        + (0 if device.type == "cpu" else max(two - 2 * (three - two), 0)),
    )


class _Watch(TorchFunctionMode):
    """Computes in the number formats of autocast, which ignores tensors without memory, and records convolutions.

    A convolution with mixed kernels (model/kernels/cell_conv.py) keeps its input, not its kernels, and hides both from
    hooks outside.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.inputs: list[Tensor] = []
        self.kernels: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls a function of torch."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "lstm" and args[0].is_meta:
            return self._lstm(*args)
        if name in _LOWERED and self.dtype != torch.float32:
            args = tuple(map(self._lower, args))
        if name == "conv2d" and kwargs.get("groups", 1) > 1:
            self.inputs.append(args[0])
            self.kernels.append(args[1])
        return func(*args, **kwargs)

    def _lstm(self, words: Tensor, state: tuple[Tensor, Tensor], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what an LSTM of one layer does; torch would go through its steps, and load its compiler for that."""
        output = words.new_empty(*words.shape[:2], state[0].shape[2], requires_grad=True)
        self.inputs += [words, words.new_empty(_LSTM_KEEPS, *output.shape)]
        return output, *state

    def _lower(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _kept(model: MomentModel, experiment: Experiment, dtype: torch.dtype, queries: int) -> int:
    """Returns the bytes, besides the model, that a forward pass keeps for the backward pass.

    Args:
        model: In train mode, with or without memory.
        experiment: Its experiment.
        dtype: Format of the forward pass.
        queries: How many at once; two or more, or kernels mixed per query cannot be distinguished from others.
    """
    data = experiment.data
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[]):
        batch = SimpleNamespace(
            visual=torch.rand(queries, experiment.steps, data.feature_size, device=device),
            sequence=torch.rand(queries, experiment.steps, data.feature_size, device=device),
            sequence_mask=torch.ones(queries, experiment.steps, dtype=torch.bool, device=device),
            times=torch.ones(queries, 2, dtype=torch.float64, device=device),
            rows=torch.arange(queries, device=device),
            words=torch.rand(queries, _WORDS, data.word_size, device=device),
            word_mask=torch.ones(queries, _WORDS, dtype=torch.bool, device=device),
            videos=torch.arange(queries, device=device),
        )
        with saved_tensors_hooks(pack, lambda tensor: tensor), _Watch(dtype) as watch:
            model(*model.inputs_of(batch))
    others = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers(), *watch.kernels)}
    sizes = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in (*saved, *watch.inputs)}
    return sum(size for storage, size in sizes.items() if storage not in others)


def _storage(tensor: Tensor) -> StorageWeakRef:
    """Returns the identity of a tensor's memory, also on the meta device, where it has no address."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
