"""What an experiment costs before it is started: parameters, memory, disk. Imported where one is computed (torch)."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from cdn_tune.config import Experiment, LossConfig, OptimConfig, TrainConfig
from cdn_tune.training.memory.estimate import MemoryEstimate, checkpoint_bytes, count_parameters, estimate
from cdn_tune.training.step.batch_loss import resolve_precision
from cdn_tune.training.step.process_group import this_world
from cdn_tune.tuning.study.candidates import GB


@lru_cache(maxsize=512)
def _parameters(sized: str) -> float:
    return float(count_parameters(Experiment.model_validate_json(sized, strict=False)))


@lru_cache(maxsize=512)
def _checkpoint_gb(sized: str) -> float:
    return checkpoint_bytes(Experiment.model_validate_json(sized, strict=False)) / GB


@lru_cache(maxsize=512)
def _memory(sized: str) -> MemoryEstimate:
    experiment = Experiment.model_validate_json(sized, strict=False)
    device = this_world().device
    return estimate(experiment, resolve_precision(experiment.train.precision, device), device)


def _memory_gb(experiment: Experiment) -> float:
    micro, batch = experiment.train.micro_batch, experiment.train.batch_size
    return _memory(_sized(experiment)).total(batch if micro == "auto" else min(micro, batch)) / GB


def _sized(experiment: Experiment) -> str:
    """Returns the parts of an experiment that sizes follow from, as JSON: points that differ elsewhere share them."""
    rest = _rest(type(experiment.loss), experiment.train.ema, experiment.train.precision)
    return experiment.model_copy(update=rest).model_dump_json()


@lru_cache
def _rest(loss: type[LossConfig], ema: float, precision: Any) -> dict[str, Any]:
    """Returns the parts of an experiment that sizes do not follow from, at defaults."""
    train = TrainConfig(ema=ema, precision=precision)
    return {"name": "sized", "seed": 0, "loss": loss(), "optim": OptimConfig(), "train": train}


COST_OF: dict[str, Callable[[Experiment], float]] = {
    "parameters": lambda experiment: _parameters(_sized(experiment)),
    "memory_gb": _memory_gb,
    "checkpoint_gb": lambda experiment: _checkpoint_gb(_sized(experiment)),
}
