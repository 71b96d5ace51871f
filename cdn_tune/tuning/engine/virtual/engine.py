"""The virtual engine: runs a search in one process, on a virtual clock, over learning curves from a function.

Study, driver, budget and retention are the real ones; only training, waiting and machines are not. A script of faults
takes workers and nodes away. The world (clock, nodes, saved epochs) outlives a driver that is killed: another driver
may go on in the same world, as another process would.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Literal

from cdn_tune.errors import SearchError
from cdn_tune.training.reports import Decisions, EpochReport
from cdn_tune.training.runs.pace import Pace
from cdn_tune.tuning.engine.door import Answer, Assignment, Decision, Ending, EngineDriver, Loss, Room, TrialReport
from cdn_tune.tuning.study.failures import kind_of


@dataclass(frozen=True)
class CurvePoint:
    """One epoch of a learning curve.

    Attributes:
        val: Metrics on val, by name; the first one is what chooses epochs.
        seconds: Duration of training and evaluation.
        loss: Training loss.
        steps: Optimiser steps.
    """

    val: Mapping[str, float]
    seconds: float = 1.0
    loss: float = 0.0
    steps: int = 1


# A trial's whole learning curve, from its number and parameters; an exception is the trial's failure.
Curve = Callable[[int, Mapping[str, Any]], Sequence[CurvePoint]]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, or changes, at a moment.

    Attributes:
        at: When, in virtual seconds.
        kind: ``worker``: a running trial's process dies; ``node``: a node dies with its trials; ``unfit``: a trial
            finds its node unfit, which then takes no more; ``add``: a node joins; ``recall``: the engine takes a trial
            back; ``fail``: a trial's training raises an error; ``vanish``: a trial ends without a word; ``halt``: a
            trial finds the machine at fault.
        which: Chooses the trial or node, modulo how many there are.
    """

    at: float
    kind: Literal["worker", "node", "unfit", "add", "recall", "fail", "vanish", "halt"]
    which: int = 0


class VirtualClock:
    """A clock that moves only when the engine moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Returns the virtual time in seconds."""
        return self.now


@dataclass(eq=False)
class _Attempt:
    """A trial under way.

    Attributes:
        number: Its number in the study.
        node: Where it runs.
        curve: Its whole learning curve.
        began: When.
        pace: When its next checkpoint is due.
        decisions: With which reports it may be stopped or paused.
        history: Epochs reported by this attempt.
    """

    number: int
    node: int
    curve: Sequence[CurvePoint]
    began: float
    pace: Pace
    decisions: Decisions | None
    history: list[EpochReport] = field(default_factory=list)


@dataclass
class World:
    """What outlives a driver.

    Attributes:
        clock: The time.
        nodes: Slots of each node that is alive, by id.
        unfit: Nodes that take no trials.
        faults: What is still to go wrong.
        saved: Epochs that each trial has a checkpoint of.
        best: Epoch up to which each trial's best model is on disk.
        writes: How often the state of a trial was written, and the best model.
        trained: How often each epoch of each trial was computed.
        wasted: Epochs computed although a checkpoint had them.
        busy_seconds: Slot time taken by trials, over all slots.
        slot_seconds: Slot time there was, over all slots.
    """

    clock: VirtualClock = field(default_factory=VirtualClock)
    nodes: dict[int, int] = field(default_factory=lambda: {0: 1})
    unfit: set[int] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    saved: dict[int, int] = field(default_factory=dict)
    best: dict[int, int] = field(default_factory=dict)
    writes: Counter[Literal["state", "best"]] = field(default_factory=Counter)
    trained: Counter[tuple[int, int]] = field(default_factory=Counter)
    wasted: int = 0
    busy_seconds: float = 0.0
    slot_seconds: float = 0.0

    @property
    def slots(self) -> int:
        """Slots on nodes that take trials."""
        return sum(slots for node, slots in self.nodes.items() if node not in self.unfit)


class VirtualEngine:
    """Runs trials on a virtual clock.

    Args:
        curve: Gives each trial's learning curve.
        world: The clock, the nodes and what goes wrong; one node with one slot if None.
        start_seconds: From an assignment to the beginning of the first epoch; of each trial, if a function of its
            number, which is called after `curve`.
        poll_seconds: The driver is polled so often, besides at every event; None: at events only.
        checkpoint: When trials write checkpoints, as `train.checkpoint`.
        checkpoint_bytes: Of a write, which decide when the first one is due.
        write_seconds: How long a write takes; trials do not wait for it.
    """

    def __init__(
        self,
        curve: Curve,
        world: World | None = None,
        start_seconds: float | Callable[[int], float] = 0.0,
        poll_seconds: float | None = None,
        checkpoint: Literal["auto", "epoch"] | float = "epoch",
        checkpoint_bytes: float = 0.0,
        write_seconds: float = 0.0,
    ) -> None:
        self.world = world or World()
        self.clock, self.left_behind = self.world.clock, None
        self.log: list[tuple[float, str, int]] = []  # time, what happened, trial
        self._curve, self._start_seconds, self._poll_seconds = curve, start_seconds, poll_seconds
        self._checkpoint, self._checkpoint_bytes, self._write_seconds = checkpoint, checkpoint_bytes, write_seconds
        self._order = count()  # events of one moment happen in the order in which they were scheduled
        self._events: list[tuple[float, int, Callable[[EngineDriver], None]]] = []
        self._running: dict[int, _Attempt] = {}  # by number
        self._taken: Counter[int] = Counter()  # slots of each node
        for fault in self.world.faults:
            self._schedule(fault.at, partial(self._break, fault))

    @contextmanager
    def started(self) -> Iterator[list[dict[str, float]]]:
        """Yields the nodes, with a CPU a slot."""
        yield [{"CPU": float(slots)} for slots in self.world.nodes.values()]

    def run(self, driver: EngineDriver) -> None:
        """Runs trials until the driver has no more.

        Raises:
            SearchError: If trials are left and no slot will ever take them.
        """
        self._running.clear()  # a killed driver's trials died with it
        self._taken.clear()
        next_poll, answer = self.world.clock.now, Answer.WAIT
        while True:
            driver.poll(self._room())
            if answer is Answer.WAIT:  # FINISHED is for good, as Ray Tune takes it
                answer = self._assign(driver)
            if not self._running and answer is Answer.FINISHED:
                return
            if self._poll_seconds is not None:
                next_poll = max(next_poll, self.world.clock.now) + self._poll_seconds
                if not self._events or next_poll < self._events[0][0]:
                    self._move_to(next_poll)
                    continue
            if not self._events:
                raise SearchError("trials are left, but no slot is and none will come")
            at, _, event = heapq.heappop(self._events)
            self._move_to(at)
            event(driver)

    def _assign(self, driver: EngineDriver) -> Answer:
        while True:
            answer = driver.next(self._room())
            if isinstance(answer, Answer):
                return answer
            self._begin(driver, answer)

    def _begin(self, driver: EngineDriver, assignment: Assignment) -> None:
        number = assignment.number
        node = next(
            node
            for node, slots in sorted(self.world.nodes.items())
            if self._taken[node] < slots and str(node) not in assignment.avoid
        )
        now = self.world.clock.now
        pace = Pace(self._checkpoint, self._checkpoint_bytes, now)
        attempt = _Attempt(number, node, (), now, pace, assignment.decisions)
        self._running[number] = attempt
        self._taken[node] += 1
        self._note("begins", number)
        try:
            curve = attempt.curve = self._curve(number, assignment.parameters)
        except Exception as error:  # as a training's: the trial's failure
            self._leave(attempt, "failed")
            driver.ended(number, Ending("failed", str(error), kind_of(error)))
            return
        for _ in range(min(self.world.saved.get(number, 0), len(curve))):  # a trial reports its earlier epochs again
            if not self._report(driver, attempt):
                return
        start = self._start_seconds
        self._schedule_epoch(attempt, start(number) if callable(start) else start)

    def _schedule_epoch(self, attempt: _Attempt, delay: float = 0.0) -> None:
        at = self.world.clock.now + delay + attempt.curve[len(attempt.history)].seconds
        self._schedule(at, partial(self._epoch, attempt))

    def _epoch(self, attempt: _Attempt, driver: EngineDriver) -> None:
        if not self._runs(attempt):
            return
        number, epoch = attempt.number, len(attempt.history) + 1
        self.world.trained[number, epoch] += 1
        self.world.wasted += epoch <= self.world.saved.get(number, 0)
        if self._report(driver, attempt):
            self._schedule_epoch(attempt)

    def _report(self, driver: EngineDriver, attempt: _Attempt) -> bool:
        """Reports an attempt's next epoch, saved before if that is due; returns whether it goes on to the one after."""
        report = self._as_report(attempt)
        attempt.history.append(report.epoch)
        self._save_if_due(attempt)
        decision = driver.reported(attempt.number, report)
        if decision is Decision.STOP:
            self._leave(attempt, "stopped")
        elif report.epoch.is_last:
            self._leave(attempt, "complete")
            driver.ended(attempt.number, Ending("complete"))
        elif decision is Decision.PAUSE or driver.is_stopping:
            if driver.is_stopping:
                self._save(attempt)
            self._leave(attempt, "paused")
            driver.ended(attempt.number, Ending("paused"))
        return self._runs(attempt)

    def _save_if_due(self, attempt: _Attempt) -> None:
        """Writes a checkpoint after an attempt's last epoch, or its best model, if `training.loop` would."""
        history, now = attempt.history, self.world.clock.now
        is_best_saved = history[-1].best_epoch <= self.world.best.get(attempt.number, 0)
        is_due, needs_best = attempt.pace.due_before_report(now, history, attempt.decisions, is_best_saved)
        if is_due:
            self._save(attempt)
        elif needs_best:
            self._save_best(attempt)

    def _save(self, attempt: _Attempt) -> None:
        """Writes a checkpoint of an attempt, unless there is one that is as far."""
        epoch, now = len(attempt.history), self.world.clock.now
        if epoch > self.world.saved.get(attempt.number, 0):
            self._save_best(attempt)
            self.world.saved[attempt.number] = epoch
            self.world.writes["state"] += 1
            attempt.pace.wrote(self._write_seconds, now + self._write_seconds)

    def _save_best(self, attempt: _Attempt) -> None:
        """Writes the best model of an attempt, unless it is on disk."""
        number, report = attempt.number, attempt.history[-1]
        self.world.writes["best"] += report.best_epoch > self.world.best.get(number, 0)
        self.world.best[number] = max(report.epoch, self.world.best.get(number, 0))

    def _runs(self, attempt: _Attempt) -> bool:
        return self._running.get(attempt.number) is attempt

    def _as_report(self, attempt: _Attempt) -> TrialReport:
        points, now = attempt.curve[: len(attempt.history) + 1], self.world.clock.now
        values = [next(iter(point.val.values())) for point in points]
        best = max(values)
        point = points[-1]
        epoch = EpochReport(
            epoch=len(points),
            epochs=len(attempt.curve),
            loss=point.loss,
            losses={},
            learning_rate=0.0,
            gradient_norm=0.0,
            samples_per_second=1.0,
            train_seconds=point.seconds,
            val_seconds=0.0,
            val=dict(point.val),
            value=values[-1],
            best_value=best,
            best_epoch=values.index(best) + 1,
            steps=sum(point.steps for point in points),
            val_queries=1,
        )
        return TrialReport(epoch, sum(point.seconds for point in points), f"node-{attempt.node}", attempt.began, now)

    def _break(self, fault: Fault, driver: EngineDriver) -> None:
        world = self.world
        world.faults.remove(fault)
        if fault.kind == "add":
            world.nodes[max(world.nodes, default=-1) + 1 + fault.which] = 1
        elif fault.kind == "node" and world.nodes:
            node = sorted(world.nodes)[fault.which % len(world.nodes)]
            del world.nodes[node]
            for attempt in [attempt for attempt in self._running.values() if attempt.node == node]:
                self._lose(driver, attempt, Loss("node", "its node died"))
        elif fault.kind != "node" and self._running:
            attempt = list(self._running.values())[fault.which % len(self._running)]
            if fault.kind == "unfit":
                world.unfit.add(attempt.node)
                self._lose(driver, attempt, Loss("unfit", "its node lacks the data"))
            elif fault.kind == "recall":
                self._lose(driver, attempt, Loss("recalled", "taken back"))
            elif fault.kind == "worker":
                self._lose(driver, attempt, Loss("worker", "its process was killed"))
            else:
                self._leave(attempt, fault.kind)
                kinds = {"fail": "failed", "vanish": "complete", "halt": "halted"}
                driver.ended(attempt.number, Ending(kinds[fault.kind], "the script of faults"))  # type: ignore[arg-type]

    def _lose(self, driver: EngineDriver, attempt: _Attempt, loss: Loss) -> None:
        self._leave(attempt, f"lost ({loss.kind})")
        driver.lost(attempt.number, loss)

    def _leave(self, attempt: _Attempt, how: str) -> None:
        del self._running[attempt.number]
        self._taken[attempt.node] -= 1
        self._note(how, attempt.number)

    def _room(self) -> Room:
        return Room(self.world.slots, tuple(sorted(map(str, self.world.unfit & self.world.nodes.keys()))))

    def _schedule(self, at: float, event: Callable[[EngineDriver], None]) -> None:
        heapq.heappush(self._events, (at, next(self._order), event))

    def _move_to(self, moment: float) -> None:
        passed = max(0.0, moment - self.world.clock.now)
        self.world.busy_seconds += passed * len(self._running)
        self.world.slot_seconds += passed * max(self.world.slots, len(self._running))
        self.world.clock.now = max(moment, self.world.clock.now)

    def _note(self, what: str, number: int) -> None:
        self.log.append((self.world.clock.now, what, number))
