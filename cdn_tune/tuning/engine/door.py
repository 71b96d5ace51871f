"""The engine's door: what an engine asks a search's driver, and what it reports. No Ray here, and no clock.

An engine places and runs trials; the driver decides. An engine calls, from one thread:

- ``next(room)`` whenever it could take a trial: an `Assignment`, `Answer.WAIT`, or for good `Answer.FINISHED`;
- ``reported(number, report)`` after each epoch of a trial: go on, pause or stop (`Decision`);
- ``ended(number, ending)`` when a trial ended by itself, in whatever way;
- ``lost(number, loss)`` when a trial's place or process is gone: True if the trial will be assigned again;
- ``poll(room)`` all the time, at least between any two of the calls above.

Every assigned trial leaves the engine exactly once: by `Decision.STOP`, by ``ended`` or by ``lost``. One that is paused
or lost may be assigned again: it goes on from its last checkpoint, and reports its earlier epochs again, those that it
trains again among them. Once `EngineDriver.is_stopping`, every trial saves its state, leaves and is ``ended``, paused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Protocol

from cdn_tune.training.reports import Decisions, EpochReport


@dataclass(frozen=True)
class Room:
    """What an engine can take now.

    Attributes:
        slots: Trials that can run at once.
        avoid: Nodes, by id, that take no trials now.
        lines: What the user should know of the nodes.
        why_none: Why no trial will ever run, if so.
    """

    slots: int
    avoid: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    why_none: str | None = None


@dataclass(frozen=True)
class Assignment:
    """A trial to run.

    Attributes:
        number: Its number in the study.
        parameters: Sampled values by dotted key.
        avoid: Nodes, by id, to keep clear of.
        decisions: With which reports it may be stopped or paused, so that its checkpoint has to be on disk before;
            none if None.
    """

    number: int
    parameters: Mapping[str, Any]
    avoid: tuple[str, ...] = ()
    decisions: Decisions | None = None


class Answer(Enum):
    """Why there is no assignment: none now, or none any more."""

    WAIT = "wait"
    FINISHED = "finished"


class Decision(Enum):
    """What a trial does after a report.

    ``PAUSE``: it leaves its slot and is reported as ``ended``, paused; its checkpoint of this epoch is on disk. It
    stays on record as running: it is assigned again when it is promoted, or by the next start of the search.
    """

    GO_ON = "go on"
    PAUSE = "pause"
    STOP = "stop"


@dataclass(frozen=True)
class TrialReport:
    """One epoch of a trial, as an engine passes it on.

    Attributes:
        epoch: The training's own report.
        seconds: Training and evaluation so far, over all attempts at the trial.
        node: Name of the node it runs on.
        began: When this attempt began on that node's clock, in seconds since 1970.
        at: When the report was made, on the same clock.
    """

    epoch: EpochReport
    seconds: float
    node: str = ""
    began: float = 0.0
    at: float = 0.0


@dataclass(frozen=True)
class Ending:
    """How a trial ended by itself.

    Attributes:
        kind: ``complete``; ``paused``: it left its slot with a checkpoint; ``failed``: an error that would
            come again; ``halted``: the machine is at fault (disk full, folder gone), and no further trial should start.
        reason: In one line, of the last two.
        failure: Kind of a failure, see `study.failures`.
    """

    kind: Literal["complete", "paused", "failed", "halted"]
    reason: str = ""
    failure: str = "deterministic"


@dataclass(frozen=True)
class Loss:
    """Why a trial lost its place.

    Attributes:
        kind: ``worker``: its process died; ``node``: its node died, was preempted or cannot be reached; ``unfit``: the
            node cannot train it; ``recalled``: the engine took it back before it began, or gave up a used-up process.
        reason: In one line.
        node: The id of an unfit node.
    """

    kind: Literal["worker", "node", "unfit", "recalled"]
    reason: str = "its worker process died"
    node: str = ""


class EngineDriver(Protocol):
    """The driver as an engine sees it; the calls are described at the top of this module."""

    def next(self, room: Room) -> Assignment | Answer: ...  # noqa: D102
    def reported(self, number: int, report: TrialReport) -> Decision: ...  # noqa: D102
    def ended(self, number: int, ending: Ending) -> None: ...  # noqa: D102
    def lost(self, number: int, loss: Loss) -> bool: ...  # noqa: D102
    def poll(self, room: Room) -> None: ...  # noqa: D102
    @property
    def is_over(self) -> bool:
        """Whether no further trial starts, although trials may be left."""

    @property
    def is_stopping(self) -> bool:
        """Whether running trials are to save their state and leave."""

    @property
    def wants_slots(self) -> bool:
        """Whether all slots are taken, and one more would have a trial to run."""


class Engine(Protocol):
    """Runs trials until the driver has no more: see `engine.ray.engine` and `engine.virtual.engine`.

    Attributes:
        clock: Seconds since any moment, never falling: what the driver measures time by.
        left_behind: What it left on its machines, once it has run; None if it cannot tell.
    """

    clock: Callable[[], float]
    left_behind: Any

    def started(self) -> AbstractContextManager[list[dict[str, float]]]:
        """Starts or joins its machines for a block; yields each node's resources, e.g. ``[{"CPU": 2.0}]``."""

    def run(self, driver: EngineDriver) -> None:
        """Returns when every trial has left the engine and ``next`` has answered `Answer.FINISHED`."""
