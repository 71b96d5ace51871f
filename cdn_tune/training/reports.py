"""What training tells whoever runs it, once per epoch and once per step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from typing import Any


class Stop(IntEnum):
    """What a training is asked for between two steps; `True` means `SAVE`."""

    NO = 0
    SAVE = 1  # save the state and end
    DISCARD = 2  # end at once: its last checkpoint is all that is needed


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch; its checkpoint is on disk when this is reported.

    Attributes:
        epoch: Number of the epoch, from 1.
        epochs: Epochs in all: this one's number, when patience has ended the training.
        loss: Training loss, mean over queries.
        losses: Its parts by name, unweighted; `plain` has them beside the other values, after `loss`.
        learning_rate: At the end of the epoch.
        gradient_norm: Mean over the steps, before clipping.
        samples_per_second: Training queries per second, all workers together.
        train_seconds: Duration of the training part.
        val_seconds: Duration of the evaluation on val.
        val: Metrics on the val split, by name; empty in an epoch after which val was not evaluated.
        value: The val metric that chooses epochs and trials; in such an epoch, the last one measured.
        best_value: Its best so far.
        best_epoch: The epoch of that.
        peak_bytes: Most memory that worker 0 has occupied: of its GPU, else of its process.
        steps: Optimiser steps so far, over all epochs.
        val_queries: Queries of val that were evaluated; 0 in an epoch after which val was not.
        query_ious: IoU of the top moment for at most 256 of them, evenly spaced (see `query_ious`); then empty.
    """

    epoch: int
    epochs: int
    loss: float
    losses: dict[str, float]
    learning_rate: float
    gradient_norm: float
    samples_per_second: float
    train_seconds: float
    val_seconds: float
    val: dict[str, float]
    value: float
    best_value: float
    best_epoch: int
    peak_bytes: int = 0
    steps: int = 0
    val_queries: int = 0
    query_ious: str = ""

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
    def read(cls, plain: dict[str, Any]) -> EpochReport:
        """Returns the report that `plain` was made of: values of other names are parts of the loss."""
        own = {field.name for field in fields(cls)}
        rest = {name: value for name, value in plain.items() if name not in own}
        return cls(losses=rest, **{name: value for name, value in plain.items() if name in own})


Report = Callable[[EpochReport], None]


@dataclass(frozen=True)
class StepReport:
    """One optimiser step.

    Attributes:
        epoch: Number of the epoch, from 1.
        step: Step within the epoch, from 1.
        steps: Steps per epoch.
        loss: Training loss of the step's batch on this worker.
        samples_per_second: Training queries per second in this epoch, all workers together.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    samples_per_second: float = 0.0


OnStep = Callable[[StepReport], None]


def ignore(_: object) -> None:
    """A report that nobody reads."""
