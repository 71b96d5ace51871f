"""Reports of a training, once per epoch and once per step."""

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, create_model

if TYPE_CHECKING:
    import torch

MOST = 256  # queries whose IoUs a report holds
_STEPS = 255  # of a byte


class Stop(IntEnum):
    """What a training does after the step; `True` means `SAVE`."""

    NO = 0
    SAVE = 1  # save the state and end
    DISCARD = 2  # end at once: what is on disk is all that is needed


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch."""

    epoch: int  # number of the epoch, from 1
    epochs: int  # epochs in all: this one's number, when patience has ended the training
    loss: float  # training loss, mean over queries
    losses: dict[str, float]  # its parts by name, unweighted; `plain` has them beside the other values, after `loss`
    learning_rate: float  # at the end of the epoch
    gradient_norm: float  # mean over the steps, before clipping
    samples_per_second: float  # training queries per second, all workers together
    train_seconds: float  # duration of the training part
    val_seconds: float  # duration of the evaluation on val
    val: dict[str, float]  # metrics on the val split, by name; empty in an epoch after which val was not evaluated
    value: float  # the val metric that chooses epochs and trials; in such an epoch, the last one measured
    best_value: float  # its best so far
    best_epoch: int  # the epoch of that
    peak_bytes: int = 0  # most memory that worker 0 has occupied: of its GPU, else of its process
    steps: int = 0  # optimiser steps so far, over all epochs
    val_queries: int = 0  # queries of val that were evaluated; 0 in an epoch after which val was not
    query_ious: str = ""  # IoU of the top moment for some of them, as `pack_ious` returns it; then empty

    @property
    def is_last(self) -> bool:
        """Whether training ends with this epoch."""
        return self.epoch >= self.epochs

    def plain(self) -> dict[str, Any]:
        """Returns the report as a plain dict, ready for JSON."""
        found: dict[str, Any] = {}
        for name, value in asdict(self).items():
            found |= value if name == "losses" else {name: value}
        return found

    @classmethod
    def read(cls, plain: dict[str, Any]) -> "EpochReport":
        """Returns the report that `plain` was called on: values of other names are parts of the loss.

        Raises:
            ValueError: If it was called on none.
        """
        if not isinstance(plain, dict):
            raise ValueError(f"{type(plain).__name__} is no report")
        own = {field.name for field in fields(cls)}
        whole: dict[str, Any] = {"losses": {name: value for name, value in plain.items() if name not in own}}
        whole |= {name: value for name, value in plain.items() if name in own}
        return cls(**dict(_checked().model_validate(whole, strict=True)))


@dataclass(frozen=True)
class Decisions:
    """The reports with which a search may take a trial out of its place; what is then needed is on disk before.

    Attributes:
        unit: What progress is counted in; seconds in thousandths.
        first: Progress at the first decision.
        factor: How many times as far the next one is; 1: every report from the first on may bring one.
        pauses: Whether a trial is paused, to go on from its checkpoint; else it is stopped, and its best may be kept.
        worth: No trial whose best val metric is below it is kept when it is stopped.
    """

    unit: Literal["epoch", "step", "seconds"] = "epoch"
    first: int = 1
    factor: int = 1
    pauses: bool = False
    worth: float = -math.inf

    def need(self, history: Sequence[EpochReport], is_best_saved: bool) -> bool:
        """Returns whether the last epoch's report needs a checkpoint, or the best model, on disk.

        Args:
            history: The reports of all epochs so far.
            is_best_saved: Whether the best weights are on disk.
        """
        return (self.pauses or (not is_best_saved and history[-1].best_value >= self.worth)) and self.may_come(history)

    def may_come(self, history: Sequence[EpochReport]) -> bool:
        """Returns whether a decision may come with the last epoch's report.

        Args:
            history: The reports of all epochs so far.
        """
        if (now := self._progress(history)) < self.first:
            return False
        return self.factor == 1 or rungs(now, self.first, self.factor) > rungs(
            self._progress(history[:-1]), self.first, self.factor
        )

    def _progress(self, history: Sequence[EpochReport]) -> int:
        if self.unit == "seconds":
            return round(1000 * sum(report.train_seconds + report.val_seconds for report in history))
        last = history[-1] if history else None
        return 0 if last is None else last.epoch if self.unit == "epoch" else last.steps


def rungs(progress: int, first: int, factor: int) -> int:
    """Returns how many rungs a trial has come to that lie at `first`, `first * factor`, and so on."""
    count = 0
    while first * factor**count <= progress:
        count += 1
    return count


@cache
def _checked() -> type[BaseModel]:
    """Returns a model of the report's fields, which checks their types."""
    kinds = get_type_hints(EpochReport)
    settings: dict[str, Any] = {
        field.name: (kinds[field.name], ... if field.default is MISSING else field.default)
        for field in fields(EpochReport)
    }
    return create_model("EpochReport", **settings)


Report = Callable[[EpochReport], None]


@dataclass(frozen=True)
class StepReport:
    """One optimiser step."""

    epoch: int  # number of the epoch, from 1
    step: int  # step within the epoch, from 1
    steps: int  # steps per epoch
    loss: float  # training loss of the step's batch on this worker
    samples_per_second: float = 0.0  # training queries per second in this epoch, all workers together


OnStep = Callable[[StepReport], None]


def ignore(_: object) -> None:
    """No-op, for reports that are not needed."""


def pack_ious(ious: "torch.Tensor") -> str:
    """Returns IoUs in [0, 1] of the top moments [Q]: a byte each, of at most 256 evenly spaced queries, as base64.

    Two trials answer the same val queries, so query by query they can be compared more surely than by their means.
    """
    chosen = np.linspace(0, len(ious) - 1, min(MOST, len(ious))).round().astype(np.int64)
    values = ious.detach().double().cpu().numpy()[chosen]
    return base64.b64encode((values * _STEPS).round().astype(np.uint8).tobytes()).decode("ascii")


def unpack_ious(packed: str) -> npt.NDArray[np.float64]:
    """Returns packed IoUs, float64 [min(Q, 256)], each within 1/510 of the original; none of an empty text."""
    return np.frombuffer(base64.b64decode(packed), np.uint8) / _STEPS
