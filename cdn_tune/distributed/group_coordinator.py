"""Which group trains which trial: an actor between the processes that submit trials and the groups of workers.

Neither Ray nor torch is imported here, so that its process is small and soon up.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from cdn_tune.training.reports import Stop

REPORT, STEP = "report", "step"  # news of a trial under way
FINISHED, STOPPED, FAILED, LOST = "finished", "stopped", "failed", "lost"  # its last news
WORKER: Final = "worker"  # what was lost
NODE: Final = "node"  # also whatever else a group needs
IDLE, OVER = "idle", "over"  # instead of a trial: ask again, or end
DIED = "the process that hands trials to groups of workers died"  # this one
STARTS = 4  # starts of a group's workers without a trial in between, after which the group is at fault
_FAILED_SECONDS = 2.0  # how long a worker that has failed waits for the others to fail as well

News = tuple[str, Any]


@dataclass
class _Trial:
    """A trial that was submitted; the group whose `ticket` is its own trains it."""

    number: int
    work: dict[str, Any]  # what workers need to train it
    taken: float = 0.0  # when it was handed out
    begun: set[int] = field(default_factory=set)  # ranks that have received it
    failed: set[int] = field(default_factory=set)  # ranks that have failed
    stop: Stop = Stop.NO  # what its workers have to do
    stopped: float = 0.0  # since when
    news: list[News] = field(default_factory=list)  # reports and the end, as far as they have not been fetched
    has_ended: bool = False  # the last of its news has come
    is_unread: bool = True  # that will be fetched

    def end(self, how: str, content: Any = None) -> None:
        if not self.has_ended:
            self.has_ended = True
            self.news.append((how, content))


@dataclass
class _Run:
    """A group: one run of Ray Train, over all restarts of its workers."""

    size: int
    place: str = ""  # placement group of its present workers
    nodes: dict[int, str] = field(default_factory=dict)  # by rank
    ticket: int | None = None  # of the trial that it trains
    idle_since: float | None = None  # its rank 0 waits for a trial
    starts: int = 0  # of workers, since a trial has begun
    closing: float | None = None  # since when it takes no more trials
    loss: tuple[float, str, str] | None = None  # when its workers were lost, kind and reason
    fault: str = ""


@dataclass(frozen=True)
class RunStatus:
    """A group as it stands; times are in seconds."""

    nodes: tuple[str, ...] = ()  # of its workers, by id; empty before they are up
    is_up: bool = False  # all its workers have started
    is_busy: bool = False  # it has a trial
    idle: float = 0.0  # since it waits for one
    lost: float = 0.0  # since its workers were lost under a trial
    loss: tuple[str, str] | None = None  # kind and reason of that
    hung: float = 0.0  # since it should have begun a trial, left one that was discarded, or ended
    is_closing: bool = False  # it takes no more trials
    fault: str = ""  # why it cannot be used


class Coordinator:
    """Hands submitted trials to groups that are free, and keeps their reports until they are fetched.

    Trials are identified by the ticket of their submission, groups by the run of Ray Train, and a group's workers by
    their placement group: what comes late from a former one changes nothing.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._trials: dict[int, _Trial] = {}
        self._queue: list[int] = []
        self._runs: dict[int, _Run] = {}
        self._tickets = 0
        self._begun = 0
        self._is_drained = self._is_closed = False
        self._changed = asyncio.Condition()

    # Called by processes that submit trials, and by the pool for them.

    async def submit(self, number: int, work: dict[str, Any]) -> int:
        """Queues a trial; returns its ticket."""
        self._tickets += 1
        self._trials[self._tickets] = trial = _Trial(number, work)
        if self._is_drained:
            trial.end(STOPPED)
        else:
            self._queue.append(self._tickets)
        await self._notify()
        return self._tickets

    async def next(self, ticket: int, seconds: float) -> list[News]:
        """Returns a trial's news since the last call, after waiting for some, so long at most; the end comes last."""
        trial = self._trials.get(ticket)
        if trial is None:
            return [(LOST, {"kind": WORKER, "reason": "its reports were fetched by another process"})]
        await self._until(lambda: bool(trial.news), seconds)
        news, trial.news = trial.news, []
        if trial.has_ended:
            trial.is_unread = False
            self._forget(ticket)
        return news

    async def stop(self, number: int) -> None:
        """Discards a trial: its workers leave it between two steps, and its reports are dropped."""
        for ticket, trial in list(self._trials.items()):
            if trial.number == number and not trial.has_ended:
                self._stop(ticket, Stop.DISCARD)
        await self._notify()

    async def drain(self) -> None:
        """Ends the trials that no group has taken, and those that are submitted later."""
        await self._stop_all(self._queue, Stop.SAVE)

    async def save_all(self) -> None:
        """Makes all trials save their state and end, and takes no more."""
        await self._stop_all(self._trials, Stop.SAVE)

    async def _stop_all(self, tickets: Iterable[int], how: Stop) -> None:
        self._is_drained = True
        for ticket in list(tickets):
            self._stop(ticket, how)
        await self._notify()

    def _stop(self, ticket: int, how: Stop) -> None:
        trial = self._trials[ticket]
        if ticket in self._queue:
            self._queue.remove(ticket)
            trial.end(STOPPED)
        elif how > trial.stop:
            trial.stop, trial.stopped = how, self._clock()
        if how is Stop.DISCARD:
            trial.is_unread = False
            trial.news.clear()
            self._forget(ticket)

    # Called by workers.

    async def hello(self, run: int, place: str, rank: int, node: str) -> None:
        """Registers a worker that has started; the first of a new placement group replaces the former workers."""
        group = self._runs.get(run)
        if group is None:
            return
        if place != group.place:
            self._lose(group, *(group.loss or (0.0, WORKER, "a worker of its group died"))[1:])
            group.place, group.nodes, group.idle_since = place, {}, None
            group.starts += 1
            if group.starts > STARTS and group.closing is None:
                group.fault = f"its workers started {STARTS} times without training a trial"
                self._close(group)
        group.nodes[rank] = node
        await self._notify()

    async def take(self, run: int, place: str, seconds: float) -> dict[str, Any] | str:
        """Returns the next trial, with its ticket, for a group's rank 0: IDLE if none comes in time, OVER to end."""
        group = self._runs.get(run)
        if group is None or group.place != place or group.ticket is not None:
            return OVER
        if group.idle_since is None:
            group.idle_since = self._clock()

        def is_over() -> bool:
            return group.closing is not None or self._is_closed or group.place != place

        await self._until(lambda: is_over() or self._first() is not None, seconds)
        ticket = self._first()
        if is_over():
            return OVER
        if ticket is None:
            return IDLE
        self._queue.remove(ticket)
        trial = self._trials[ticket]
        trial.taken, group.ticket, group.idle_since = self._clock(), ticket, None
        return {"ticket": ticket, **trial.work}

    async def begin(self, ticket: int, rank: int) -> None:
        """Registers that a worker has received its trial."""
        if (group := self._group(ticket)) is not None:
            begun = self._trials[ticket].begun
            begun.add(rank)
            if len(begun) == group.size:
                group.starts = 0
                self._begun += 1

    async def report(self, ticket: int, kind: str, content: dict[str, Any]) -> None:
        """Keeps a report of rank 0; one of a trial that has ended or is discarded is dropped."""
        trial = self._trials.get(ticket)
        if trial is not None and not trial.has_ended and trial.stop is not Stop.DISCARD:
            trial.news.append((kind, content))
            await self._notify()

    async def stop_wanted(self, ticket: int, seen: Stop, seconds: float) -> Stop | None:
        """Returns what a trial's workers have to do, after waiting for other than `seen`; None if it has ended."""
        trial = self._trials.get(ticket)
        if trial is None:
            return None
        await self._until(lambda: trial.has_ended or trial.stop != seen, seconds)
        return None if trial.has_ended else trial.stop

    async def end(self, ticket: int, how: str) -> None:
        """Registers that all workers have left a trial; rank 0 reports it."""
        if (group := self._group(ticket)) is not None:
            self._trials[ticket].end(how)
            self._release(group)
            await self._notify()

    async def fail(self, ticket: int, rank: int, error: bytes, seconds: float = _FAILED_SECONDS) -> bool:
        """Ends a trial with the error, pickled, of the first worker that has failed.

        Returns:
            Whether all its workers have failed, and so are ready for another trial; else the group has to be restarted.
        """
        group = self._group(ticket)
        if group is None or ((trial := self._trials[ticket]).has_ended and not trial.failed):
            return False
        trial.failed.add(rank)
        trial.end(FAILED, error)
        await self._notify()
        await self._until(lambda: len(trial.failed) == group.size, seconds)
        if group.ticket == ticket:
            self._release(group)
        return len(trial.failed) == group.size

    async def lost(self, run: int, kind: str, reason: str) -> None:
        """Registers that workers of a group are gone, which Ray Train will replace."""
        group = self._runs.get(run)
        if group is None:
            return
        group.place, group.idle_since = "", None  # the former workers get no further trial
        if group.ticket is not None and group.loss is None:
            group.loss = (self._clock(), kind, reason)
        await self._notify()

    # Called by the pool.

    async def open(self, run: int, size: int) -> None:
        """Registers a group that is being started."""
        self._runs[run] = _Run(size)

    async def close_run(self, run: int) -> None:
        """Makes a group end as soon as it has no trial."""
        if run in self._runs:
            self._close(self._runs[run])
        await self._notify()

    async def lose(self, run: int, kind: str, reason: str) -> None:
        """Ends a group's trial as lost; one that its workers had not received is queued again."""
        if run in self._runs:
            self._lose(self._runs[run], kind, reason)
            await self._notify()

    async def remove(self, run: int, reason: str) -> None:
        """Forgets a group that has ended."""
        await self.lose(run, NODE, reason)
        self._runs.pop(run, None)

    async def status(self) -> dict[str, Any]:
        """Returns how many trials are queued and how many have begun, and the groups as they stand."""
        runs = {run: self._status(group) for run, group in self._runs.items()}
        return {"queued": len(self._queue), "begun": self._begun, "runs": runs}

    async def close(self) -> None:
        """Makes all groups end; trials that they train are discarded."""
        self._is_closed = True
        for group in self._runs.values():
            self._close(group)
        await self._stop_all(self._trials, Stop.DISCARD)

    def _status(self, group: _Run) -> RunStatus:
        now, hung = self._clock(), 0.0
        trial = None if group.ticket is None else self._trials[group.ticket]
        if trial is not None and len(trial.begun) < group.size:
            hung = now - trial.taken
        elif trial is not None and trial.stop is Stop.DISCARD:
            hung = now - trial.stopped
        elif trial is None and group.closing is not None and group.place:
            hung = now - group.closing
        return RunStatus(
            nodes=tuple(group.nodes.values()),
            is_up=bool(group.place) and len(group.nodes) == group.size,
            is_busy=trial is not None,
            idle=0.0 if group.idle_since is None else now - group.idle_since,
            lost=0.0 if group.loss is None else now - group.loss[0],
            loss=None if group.loss is None else group.loss[1:],
            hung=hung,
            is_closing=group.closing is not None,
            fault=group.fault,
        )

    def _close(self, group: _Run) -> None:
        group.closing = self._clock() if group.closing is None else group.closing

    def _group(self, ticket: int) -> _Run | None:
        """Returns the group that trains a trial."""
        return next((group for group in self._runs.values() if group.ticket == ticket), None)

    def _first(self) -> int | None:
        """Returns the ticket of the first queued trial that no other group still trains."""
        running = {self._trials[group.ticket].number for group in self._runs.values() if group.ticket is not None}
        return next((ticket for ticket in self._queue if self._trials[ticket].number not in running), None)

    def _lose(self, group: _Run, kind: str, reason: str) -> None:
        if group.ticket is not None and not (trial := self._trials[group.ticket]).has_ended:
            if trial.stop is not Stop.NO:
                trial.end(STOPPED)
            elif len(trial.begun) < group.size:
                trial.begun = set()
                self._queue.insert(0, group.ticket)
            else:
                trial.end(LOST, {"kind": kind, "reason": reason})
        self._release(group)

    def _release(self, group: _Run) -> None:
        """Takes its trial from a group."""
        ticket, group.ticket, group.loss = group.ticket, None, None
        if ticket is not None:
            self._forget(ticket)

    def _forget(self, ticket: int) -> None:
        """Forgets a trial that neither a group nor a reader needs any more."""
        trial = self._trials.get(ticket)
        if trial is not None and not trial.is_unread and ticket not in self._queue and self._group(ticket) is None:
            del self._trials[ticket]

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, is_true: Callable[[], bool], seconds: float) -> None:
        """Waits until a condition holds, but no longer than so many seconds."""
        try:
            async with self._changed:
                await asyncio.wait_for(self._changed.wait_for(is_true), seconds)
        except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
            return
