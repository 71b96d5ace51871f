"""Optimiser, learning-rate schedule and weight average of an experiment."""

import copy
import math
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cdn_tune.config import OptimConfig
from cdn_tune.config.tables import SCHEDULES, resolve
from cdn_tune.errors import ConfigError
from cdn_tune.training.step.uncompiled import without_compiler

PLATEAU_FACTOR = 0.8
PLATEAU_PATIENCE = 5
REVERSED_PATIENCE = 20
MILESTONE_FACTOR = 0.1
BASE = "base_lr"  # of a parameter group that has a learning rate of its own after the warm-up


def build_optimiser(model: nn.Module, config: OptimConfig, text_part: str = "") -> Optimizer:
    """Builds Adam or AdamW; weights and kernels decay, biases and norms only with `decay_all`.

    Fused: one pass over memory per step instead of a dozen (ten times faster on a CPU).

    Args:
        model: Whose parameters are trained.
        config: Rates and decay.
        text_part: The module whose rate is `text_lr`, where that is set: in groups of its own.

    Raises:
        ConfigError: If the model has no such part.
    """
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decays = {
        name: config.decay_all or (parameter.ndim > 1 and not name.endswith("bias")) for name, parameter in parameters
    }
    text = {name for name in decays if config.text_lr is not None and name.startswith(f"{text_part}.")}
    if config.text_lr is not None and not text:
        raise ConfigError(f"optim.text_lr={config.text_lr:g}: this model has no part that encodes queries; unset it")
    groups: list[dict[str, Any]] = []
    for names, rate in ((decays.keys() - text, {}), (text, {BASE: config.text_lr})):
        for decay in (True, False) if names else ():
            chosen = [parameter for name, parameter in parameters if name in names and decays[name] == decay]
            groups.append({"params": chosen, "weight_decay": config.weight_decay if decay else 0.0, **rate})
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return without_compiler(kind)(groups, lr=config.lr, betas=config.betas, fused=True)


def leave_out_if(optimiser: Optimizer, wrong: torch.Tensor) -> None:
    """Has a fused optimiser's next step change nothing if a flag on its device, a bool, is set.

    So no host waits for the flag. `torch.amp.GradScaler` tells fused optimisers so, too, but scales all gradients.
    """
    optimiser.found_inf = wrong.float()  # type: ignore[attr-defined]


class Schedule:
    """The learning rate over time: a linear warm-up, then `scale`. `config.tables.SCHEDULES` lists its subclasses.

    A subclass overrides `scale`, and `end_epoch`, `state_dict` and `load_state_dict` if it keeps more than the steps.

    Attributes:
        uses_length: Whether learning rates depend on `total_steps`; where not, a run may become longer.
        reads_val_loss: Whether `end_evaluation` is called.

    Args:
        optimiser: Whose learning rate is set.
        config: Schedule and warm-up.
        total_steps: Optimiser steps in the whole training.
        epoch_steps: Optimiser steps in an epoch.
    """

    uses_length: ClassVar[bool] = True
    reads_val_loss: ClassVar[bool] = False

    def __init__(self, optimiser: Optimizer, config: OptimConfig, total_steps: int, epoch_steps: int = 1) -> None:
        self._optimiser, self._config, self._total = optimiser, config, total_steps
        self._warmup = config.warmup_steps or config.warmup_epochs * epoch_steps
        self._steps = 0
        self._set()

    def scale(self, progress: float) -> float:  # noqa: ARG002
        """Returns the factor of the learning rate at a share in [0, 1] of the steps after the warm-up."""
        return 1.0

    def step(self) -> None:
        """Advances by one optimiser step."""
        self._steps += 1
        self._set()

    def end_epoch(self, loss: float) -> None:
        """Called with the training loss of a finished epoch."""

    def end_evaluation(self, loss: float) -> None:
        """Called with the loss on val, after an epoch that is followed by an evaluation."""

    @property
    def steps(self) -> int:
        """Optimiser steps so far."""
        return self._steps

    @property
    def learning_rate(self) -> float:
        """The current learning rate."""
        return self._config.lr * self._factor

    @property
    def _factor(self) -> float:
        """The current share of a group's learning rate after the warm-up."""
        warmup = self._warmup
        warm = min(1.0, (self._steps + 1) / warmup) if warmup else 1.0
        if warmup and self._config.warmup_from_zero:
            warm = min(1.0, self._steps / max(warmup - 1, 1))
        progress = (self._steps - warmup) / max(self._total - warmup, 1)
        return warm * self.scale(min(max(progress, 0.0), 1.0))

    def state_dict(self) -> dict[str, float | int]:
        """Returns the state that `load_state_dict` loads."""
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Loads a saved state."""
        self._steps = int(state["steps"])
        self._set()

    def _set(self) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = group.get(BASE, self._config.lr) * self._factor


class Constant(Schedule):
    """As it is after the warm-up."""

    uses_length = False


class Cosine(Schedule):
    """After the warm-up, to zero along half a cosine."""

    def scale(self, progress: float) -> float:
        """Returns the factor of the learning rate."""
        return 0.5 * (1 + math.cos(math.pi * progress))


class Plateau(Schedule):
    """After the warm-up, lowered whenever the training loss stops falling (the published code: when it falls)."""

    uses_length = False
    _scale, _best_loss, _bad_epochs = 1.0, math.inf, 0

    def scale(self, progress: float) -> float:  # noqa: ARG002
        """Returns the factor of the learning rate."""
        return self._scale

    def end_epoch(self, loss: float) -> None:
        """Lowers the rate if the training loss has not fallen for some epochs."""
        self._observe(loss, loss < self._best_loss, PLATEAU_PATIENCE)

    def _observe(self, value: float, better: bool, patience: int) -> None:
        """Lowers the rate if for more than `patience` epochs no value has been better."""
        if better:
            self._best_loss, self._bad_epochs = value, 0
            return
        self._bad_epochs += 1
        if self._bad_epochs > patience:
            self._scale, self._bad_epochs = self._scale * PLATEAU_FACTOR, 0
            self._set()

    def state_dict(self) -> dict[str, float | int]:
        """Returns the state that `load_state_dict` loads."""
        kept = {"plateau_scale": self._scale, "best_loss": self._best_loss, "bad_epochs": self._bad_epochs}
        return {**super().state_dict(), **kept}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Loads a saved state."""
        self._scale, self._best_loss = float(state["plateau_scale"]), float(state["best_loss"])
        self._bad_epochs = int(state["bad_epochs"])
        super().load_state_dict(state)


class PlateauReversed(Plateau):
    """After the warm-up, lowered whenever the val loss has not risen for some epochs.

    2D-TAN's code does so: it feeds minus the val loss to `torch.optim.lr_scheduler.ReduceLROnPlateau`, by whose
    relative threshold of 1e-4 a value is better.
    """

    reads_val_loss = True

    def end_epoch(self, loss: float) -> None:
        """Does nothing: the val loss counts."""

    def end_evaluation(self, loss: float) -> None:
        """Lowers the rate if minus the val loss has not fallen for some epochs."""
        self._observe(-loss, -loss < self._best_loss * (1 - 1e-4), REVERSED_PATIENCE)


class Milestones(Schedule):
    """After the warm-up, a tenth of it after each of some epochs."""

    uses_length = False
    _epochs = 0

    def scale(self, progress: float) -> float:  # noqa: ARG002
        """Returns the factor of the learning rate."""
        return float(MILESTONE_FACTOR ** sum(epoch <= self._epochs for epoch in self._config.milestones))

    def end_epoch(self, loss: float) -> None:  # noqa: ARG002
        """Counts the epoch."""
        self._epochs += 1
        self._set()

    def state_dict(self) -> dict[str, float | int]:
        """Returns the state that `load_state_dict` loads."""
        return {**super().state_dict(), "epochs": self._epochs}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Loads a saved state."""
        self._epochs = int(state["epochs"])
        super().load_state_dict(state)


def build_schedule(optimiser: Optimizer, config: OptimConfig, total_steps: int, epoch_steps: int = 1) -> Schedule:
    """Builds the schedule that the configuration names; see `Schedule` for the arguments."""
    schedule: Schedule = resolve(SCHEDULES[config.schedule].build)(optimiser, config, total_steps, epoch_steps)
    return schedule


def uses_length(config: OptimConfig) -> bool:
    """Returns whether the learning rates depend on the number of steps in all."""
    kind: type[Schedule] = resolve(SCHEDULES[config.schedule].build)
    return kind.uses_length


@torch.no_grad()
def average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves averaged weights towards a model's: decay · average + (1 - decay) · weight."""
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    update(list(averaged.parameters()), list(model.parameters()), 0)


class Ema:
    """Exponential moving average of weights, which often retrieves better; buffers are those of the model.

    Args:
        model: Its weights are averaged.
        decay: Share of the old average that stays at each update, in (0, 1).
        warmup: The first updates count more, min(decay, (1 + n) / (10 + n)) after n of them, so that the untrained
            weights fade.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = True) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        kept = self.model.state_dict().keys()
        self._buffers = [name for name, _ in self.model.named_buffers() if name in kept]  # others are constants

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Adds the model's present weights to the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        average(self.model, model, decay)
        for name in self._buffers:
            self.model.get_buffer(name).copy_(model.get_buffer(name))
        self.updates += 1
