"""Chooses how a GPU multiplies in a trial's dynamic layers: what is fixed, what the checkpoint has, or the fastest.

The published formulation is always among those measured, so that no choice is slower than it.
"""

import logging
from collections.abc import Mapping
from typing import Any, get_args

import torch
from pydantic import BaseModel, ValidationError

from cdn_tune.config import TrainConfig
from cdn_tune.errors import ConfigError
from cdn_tune.model.family import MomentModel
from cdn_tune.model.kernels.mixing import triton_fault
from cdn_tune.model.kernels.products import OF_TRITON, PUBLISHED, TRITON, MixedShape
from cdn_tune.training.kernels.card import Card, format_name, this_card, triton_version
from cdn_tune.training.kernels.measure import Case, Timer, find_fault, measure, milliseconds
from cdn_tune.training.kernels.store import Choice, Name, alone, keep_choices, read_choices
from cdn_tune.training.memory.device import release_memory
from cdn_tune.training.step.process_group import World

# By a card's capability and the format, what is used unless another is clearly faster; as published elsewhere. Earlier
# versions of `rows` and `cudnn` were no faster on an H200 (benchmarks/RESULTS.md); today's products were not measured.
SHIPPED: Mapping[tuple[str, str], Name] = {("9.0", "bf16"): "published", ("9.0", "tf32"): "published"}
_CLEARLY = 0.95  # of its time
_LOG = logging.getLogger(__name__)


class Chosen(BaseModel, frozen=True):
    """How a trial's dynamic layers are multiplied; its checkpoints and its manifest hold this as plain values."""

    card: Card
    format: str
    products: dict[str, Name]  # by the layer's shape

    def of(self, shapes: tuple[MixedShape, ...]) -> dict[MixedShape, str]:
        """Returns the products by shape, as a model takes them."""
        return {shape: self.products[str(shape)] for shape in shapes if str(shape) in self.products}


def is_gpu(device: torch.device) -> bool:
    """Returns whether there is a choice on a device: a CPU convolves in a way of its own."""
    return device.type == "cuda"


def read_chosen(value: Any) -> Chosen | None:
    """Returns what a checkpoint holds; None if that is nothing, or not sound."""
    try:
        return Chosen.model_validate(value)
    except ValidationError:
        return None


def choose_products(
    settings: TrainConfig,
    shapes: tuple[MixedShape, ...],
    batch: int,
    dtype: torch.dtype,
    world: World,
    held: Any = None,
    timer: Timer = milliseconds,
) -> Chosen | None:
    """Returns how a trial's dynamic layers are multiplied, the same on every worker; None where there is no choice.

    Args:
        settings: The experiment's, of which `kernels` is read.
        shapes: The model's `mixed_shapes`.
        batch: Samples that a worker computes at once, at most.
        dtype: Format of the forward pass; whether float32 may be rounded is torch's setting now.
        world: The trial's workers.
        held: What the trial's last checkpoint holds of this.
        timer: Times the candidates.

    Raises:
        ConfigError: If `train.kernels` asks for what this machine cannot do.
    """
    _check(settings.kernels, world)
    if not is_gpu(world.device) or not shapes:
        return None
    card, before = world.gather((this_card(world.device), read_chosen(held)))[0]
    candidates = _candidates(world)
    if before is not None:
        if _is_usable(before, card, dtype, shapes, candidates):
            return before
        if world.is_main:
            _LOG.warning(
                "train.kernels: another card or software than in the checkpoint (%s); chosen anew", before.card.name
            )
    found: dict[MixedShape, Name] = {}
    if world.is_main:
        for shape in shapes:
            case = Case(shape, batch, dtype)
            if settings.kernels == "auto":
                found[shape] = chosen(case, card, candidates, world.device, timer).product
            else:
                found[shape] = _fixed(case, settings.kernels, world.device)
        release_memory()  # the epochs' peak is of the training alone
    found = world.gather(found)[0]
    return Chosen(card=card, format=format_name(dtype), products={str(shape): name for shape, name in found.items()})


def chosen(
    case: Case, card: Card, candidates: tuple[Name, ...], device: torch.device, timer: Timer = milliseconds
) -> Choice:
    """Returns the choice that is kept for a case on this card; measures it and keeps it, if there is none.

    What was measured while memory was short, or Triton was not to be used though it is installed, is not kept.
    """
    kept = read_choices(card).get(case.key)
    if kept is None or kept.product not in candidates:
        with alone(card):
            kept = read_choices(card).get(case.key)  # another process may have measured meanwhile
            if kept is None or kept.product not in candidates:
                times, dropped, short = measure(case, candidates, device, timer)
                for name, fault in dropped.items():
                    _LOG.warning("train.kernels: %s is not used for %s on %s: %s", name, case.key, card.name, fault)
                product = fastest(times, SHIPPED.get((card.capability, format_name(case.dtype)), PUBLISHED))
                kept = Choice.model_validate({"product": product, "milliseconds": times, "dropped": dropped})
                if not short and (TRITON in candidates or triton_version() is None):
                    keep_choices(card, {case.key: kept})
    return kept


def fastest(times: Mapping[str, float], shipped: str) -> str:
    """Returns the fastest; the shipped choice, unless that is not among them or another is clearly faster."""
    if not times:
        return PUBLISHED
    best = min(times, key=lambda name: times[name])
    return shipped if shipped in times and times[best] > _CLEARLY * times[shipped] else best


def use_held(model: MomentModel, held: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Has a model that is evaluated multiply as it was trained to, if this is the same card; else as published."""
    before = read_chosen(held)
    if not is_gpu(device) or before is None:
        return
    candidates = _names(triton_fault(device) is None)
    if _is_usable(before, this_card(device), dtype, model.mixed_shapes, candidates):
        model.use_products(before.of(model.mixed_shapes))


def _is_usable(
    before: Chosen, card: Card, dtype: torch.dtype, shapes: tuple[MixedShape, ...], candidates: tuple[Name, ...]
) -> bool:
    products = before.of(shapes)
    is_whole = len(products) == len(shapes) and set(products.values()) <= set(candidates)
    return is_whole and before.card == card and before.format == format_name(dtype)


def _check(setting: str, world: World) -> None:
    """Raises a `ConfigError` if a setting asks for what a worker cannot do, on all workers alike."""
    if setting == "auto":
        return
    fault = None
    if not is_gpu(world.device):
        fault = "says how a GPU multiplies, and there is none here; set train.kernels=auto"
    elif setting in OF_TRITON and (reason := triton_fault(world.device)) is not None:
        fault = f"Triton cannot be used ({reason}); pip install 'cdn-tune[gpu]', or set train.kernels=auto"
    if (first := next(filter(None, world.gather(fault)), None)) is not None:
        raise ConfigError(f"train.kernels={setting}: {first}")


def _candidates(world: World) -> tuple[Name, ...]:
    """Returns what all workers can do."""
    return _names(all(world.gather(triton_fault(world.device) is None)))


def _names(with_triton: bool) -> tuple[Name, ...]:
    return tuple(name for name in get_args(Name) if with_triton or name not in OF_TRITON)


def _fixed(case: Case, name: Name, device: torch.device) -> Name:
    fault = find_fault(case, name, device)
    if fault is None:
        return name
    _LOG.warning("train.kernels=%s is not used for %s: %s; as published instead", name, case.key, fault)
    return "published"
