"""A search on the virtual engine: real study, driver and retention; storage and checkpoints in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial

from cdn_tune.config import Experiment, SearchSpace, override
from cdn_tune.errors import CheckpointError
from cdn_tune.training.runs.kept import KeptRecord
from cdn_tune.tuning.checkpoints.retention import Retention
from cdn_tune.tuning.driver import Driver
from cdn_tune.tuning.engine.virtual.engine import CurvePoint, Fault, VirtualEngine, World
from cdn_tune.tuning.study.study import Study

optuna.logging.set_verbosity(optuna.logging.WARNING)

EPOCHS = 4
BASE: Experiment = override(
    {"name": "base", "data": {"dataset": "charades_sta", "root": "nowhere", "feature_size": 8, "word_size": 8}},
    {"model.hidden": 8, "model.map.layers": 4, "model.map.dynamic_layers": 1, "train.epochs": EPOCHS},
    "base",
)


def make_space(**more: Any) -> SearchSpace:
    """Makes a space of two parameters; keys of the space override."""
    values: dict[str, Any] = {
        "name": "virtual",
        "experiment": "base",
        "parameters": {
            "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
            "model.map.layers": {"type": "int", "low": 1, "high": 4},
        },
        "sampler": {"name": "random"},
        "start_with": [],
        "keep": 2,
        **more,
    }
    return SearchSpace.model_validate(values, strict=False)


def rising(number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
    """A curve that rises towards a value that depends on learning rate and seed; larger models take longer."""
    peak = 1.0 - abs(math.log10(parameters["optim.lr"]) + 2.5) / 2.0 + 0.1 * math.sin(parameters.get("seed", 0) + 2)
    seconds = 1.0 + 0.1 * parameters.get("model.map.layers", 1) + 0.001 * number  # no two end at the same moment
    return [CurvePoint({"R1@0.5": peak * epoch / EPOCHS, "mIoU": peak / 2}, seconds) for epoch in range(1, EPOCHS + 1)]


class Killed(BaseException):
    """The driver's process was killed."""


class KillableStorage(InMemoryStorage):
    """A storage whose writer dies at a write: before it takes effect. What was written before stays."""

    def __init__(self) -> None:
        super().__init__()
        self.writes_left: int | None = None

    def _write(self) -> None:
        if self.writes_left is not None:
            if self.writes_left == 0:
                self.writes_left = None
                raise Killed
            self.writes_left -= 1


def _killable(name: str) -> Any:
    def write(self: KillableStorage, *arguments: Any, **options: Any) -> Any:
        self._write()
        return getattr(InMemoryStorage, name)(self, *arguments, **options)

    return write


for _name in ("create_new_trial", "set_trial_param", "set_trial_state_values", "set_trial_intermediate_value"):
    setattr(KillableStorage, _name, _killable(_name))
for _name in ("set_trial_user_attr", "set_trial_system_attr", "set_study_user_attr"):
    setattr(KillableStorage, _name, _killable(_name))


@dataclass
class MemoryFiles:
    """Checkpoints in memory: of each trial in the world that has saved an epoch, and kept ones."""

    world: World
    bytes: int = 1
    kept: dict[int, float] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    def begin(self, number: int) -> None:
        self.world.saved.pop(number, None)
        self.gone.discard(number)

    def secure(self, number: int, value: float, epoch: int | None) -> KeptRecord:
        if number not in self.kept and (number in self.gone or number not in self.world.saved):
            raise CheckpointError(f"trial {number} has no checkpoint")
        self.kept[number] = value
        return KeptRecord(number, value, epoch, epoch or 1, value)

    def publish(self) -> None:
        pass

    def drop(self, number: int) -> None:
        self.kept.pop(number, None)

    def clear(self, number: int, damaged: bool) -> None:
        if not damaged:
            self.gone.add(number)

    def clear_remote(self, numbers: Iterable[int]) -> None:
        list(numbers)

    def collect(self, kept: set[int], damaged: set[int], ended: set[int]) -> None:  # noqa: ARG002
        for number in self.kept.keys() - kept - damaged:
            del self.kept[number]

    def size(self, number: int) -> int:
        return self.bytes if number in self.kept or (number in self.world.saved and number not in self.gone) else 0

    def taken(self, number: int) -> int:
        return self.size(number)

    def unreadable(self, numbers: Iterable[int]) -> int:
        return self.bytes * len(list(numbers))

    def path(self, number: int) -> Path:
        return Path(f"trial-{number:04d}")


class Flag:
    """A stop flag in memory."""

    def __init__(self) -> None:
        self.raised = False

    def __call__(self) -> bool:
        return self.raised

    def raise_it(self) -> None:
        self.raised = True


class VirtualSearch:
    """A search whose driver can be killed and started again, in a world that stays.

    Args:
        space: What is searched.
        limit: Trials in all.
        slots: Slots of each node.
        faults: What goes wrong.
        curve: Learning curves.
    """

    def __init__(
        self,
        space: SearchSpace,
        limit: int,
        slots: Sequence[int] = (2,),
        faults: Iterable[Fault] = (),
        curve: Any = rising,
        **engine: Any,
    ) -> None:
        self.space, self.limit, self.curve, self.engine_options = space, limit, curve, engine
        self.world = World(nodes=dict(enumerate(slots)), faults=list(faults))
        self.storage: BaseStorage = KillableStorage()
        self.files, self.flag = MemoryFiles(self.world), Flag()
        self.logs: list[tuple[float, str, int]] = []
        self.study: Study
        self.driver: Driver

    def start(self, kill_at_write: int | None = None, stop_after: float = math.inf) -> bool:
        """Starts the driver and runs to the end; returns whether it lived to see it.

        Args:
            kill_at_write: The driver dies at this write to the storage.
            stop_after: The user asks to stop after so many virtual seconds.
        """
        self.flag.raised = False
        stop_at = self.world.clock.now + stop_after
        if isinstance(self.storage, KillableStorage):
            self.storage.writes_left = kill_at_write
        engine = VirtualEngine(self.curve, self.world, **self.engine_options)
        try:
            self.study = Study(self.storage, self.space, BASE, clock=self.world.clock)
            self.study.begin()
            budget = self.space.disk_budget_gb
            directions = self.study.directions if len(self.study.directions) > 1 else ()
            retention = Retention(self.files, self.space.keep, budget, directions)
            self.driver = Driver(
                self.study, self.limit, retention, self.world.clock, self.flag, lambda: self.world.clock.now >= stop_at
            )
            self.driver.start()
            engine.run(self.driver)
            self.driver.close()
        except Killed:
            return False
        finally:
            if isinstance(self.storage, KillableStorage):
                self.storage.writes_left = None
            self.logs += engine.log
        return True

    @property
    def trials(self) -> list[FrozenTrial]:
        """The run's trials, as recorded now."""
        return self.study.trials()
