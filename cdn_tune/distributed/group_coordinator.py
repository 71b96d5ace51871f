"""Who trains which trial: an actor between those who submit trials and the groups of workers that train them.

Neither Ray nor torch is imported here, so that its process is small and soon up.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
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
    """A trial that was submitted.

    Attributes:
        number: The trial's number.
        work: What workers need to train it.
        run: The group that trains it.
        begun: Ranks that have received it.
        taken: When it was handed out.
        stop: What its workers are asked for, and since when.
        failed: Ranks that have failed.
        news: Reports and the end, as far as they have not been fetched.
        has_ended: Whether the last of its news is there.
        is_unread: Whether somebody will fetch that.
    """

    number: int
    work: dict[str, Any]
    run: int | None = None
    begun: set[int] = field(default_factory=set)
    taken: float = 0.0
    stop: Stop = Stop.NO
    stopped: float = 0.0
    failed: set[int] = field(default_factory=set)
    news: list[News] = field(default_factory=list)
    has_ended: bool = False
    is_unread: bool = True

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
    starts: int = 0
    closing: float | None = None  # since when it takes no more trials
    loss: tuple[float, str, str] | None = None  # when its workers were lost, kind and reason
    fault: str = ""


@dataclass(frozen=True)
class RunStatus:
    """A group as it stands.

    Attributes:
        nodes: Of its workers, by id; empty before they are up.
        is_up: Whether its workers are up.
        is_busy: Whether it has a trial.
        idle: Seconds for which it has waited for one.
        lost: Seconds since its workers were lost under a trial.
        loss: Kind and reason of that.
        hung: Seconds for which it should have begun a trial, left one that was discarded, or ended.
        is_closing: Whether it takes no more trials.
        fault: Why it cannot be used.
    """

    nodes: tuple[str, ...] = ()
    is_up: bool = False
    is_busy: bool = False
    idle: float = 0.0
    lost: float = 0.0
    loss: tuple[str, str] | None = None
    hung: float = 0.0
    is_closing: bool = False
    fault: str = ""


class Coordinator:
    """Hands submitted trials to groups that ask for one, and keeps their reports until they are fetched.

    Trials are known by the ticket of their submission, groups by the run of Ray Train, and a group's workers by their
    placement group: what comes late from a former one changes nothing.

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

    # Whoever submits trials.

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
        """Returns a trial's news since the last call: waits for some, so long at most; the end is the last of them."""
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
        """Discards a trial: its workers leave it between two steps, and nobody fetches what is left of it."""
        for ticket, trial in list(self._trials.items()):
            if trial.number == number and not trial.has_ended:
                self._stop(ticket, Stop.DISCARD)
        await self._notify()

    async def drain(self) -> None:
        """Ends the trials that no group has taken, now and from now on."""
        self._is_drained = True
        for ticket in list(self._queue):
            self._stop(ticket, Stop.SAVE)
        await self._notify()

    async def save_all(self) -> None:
        """Has all trials save their state and end, and takes no more."""
        self._is_drained = True
        for ticket in list(self._trials):
            self._stop(ticket, Stop.SAVE)
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

    # Workers.

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
        trial.run, trial.taken, group.ticket, group.idle_since = run, self._clock(), ticket, None
        return {"ticket": ticket, **trial.work}

    async def begin(self, ticket: int, rank: int) -> None:
        """Registers that a worker has received its trial."""
        trial = self._trials.get(ticket)
        if trial is None or trial.run is None:
            return
        group = self._runs[trial.run]
        trial.begun.add(rank)
        if len(trial.begun) == group.size:
            group.starts = 0
            self._begun += 1

    async def report(self, ticket: int, kind: str, content: dict[str, Any]) -> None:
        """Keeps a report of rank 0; one of a trial that has ended or is discarded is dropped."""
        trial = self._trials.get(ticket)
        if trial is not None and not trial.has_ended and trial.stop is not Stop.DISCARD:
            trial.news.append((kind, content))
            await self._notify()

    async def stop_wanted(self, ticket: int, seen: Stop, seconds: float) -> Stop | None:
        """Returns what a trial's workers are asked for: waits for other than `seen`; None if it has ended."""
        trial = self._trials.get(ticket)
        if trial is None:
            return None
        await self._until(lambda: trial.has_ended or trial.stop != seen, seconds)
        return None if trial.has_ended else trial.stop

    async def end(self, ticket: int, how: str) -> None:
        """Registers that all workers have left a trial; rank 0 reports it."""
        self._end(ticket, how)
        await self._notify()

    async def fail(self, ticket: int, rank: int, error: bytes, seconds: float = _FAILED_SECONDS) -> bool:
        """Ends a trial with the error, pickled, of the first worker that has failed.

        Returns:
            Whether all its workers have failed, and so are ready for another trial; else the group has to be restarted.
        """
        trial = self._trials.get(ticket)
        if trial is None or trial.run is None or (trial.has_ended and not trial.failed):
            return False
        group = self._runs[trial.run]
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

    # The pool.

    async def open(self, run: int, size: int) -> None:
        """Registers a group that is being started."""
        self._runs[run] = _Run(size)

    async def close_run(self, run: int) -> None:
        """Has a group end as soon as it has no trial."""
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
        return {
            "queued": len(self._queue),
            "begun": self._begun,
            "runs": {run: asdict(self._status(group)) for run, group in self._runs.items()},
        }

    async def close(self) -> None:
        """Has all groups end; trials that they train are discarded."""
        self._is_closed = self._is_drained = True
        for ticket in list(self._trials):
            self._stop(ticket, Stop.DISCARD)
        for group in self._runs.values():
            self._close(group)
        await self._notify()

    def _status(self, group: _Run) -> RunStatus:
        now = self._clock()
        trial = None if group.ticket is None else self._trials.get(group.ticket)
        hung = 0.0
        if trial is not None and len(trial.begun) < group.size:
            hung = now - trial.taken
        elif trial is not None and trial.stop is Stop.DISCARD:
            hung = now - trial.stopped
        elif group.ticket is None and group.closing is not None and group.place:
            hung = now - group.closing
        return RunStatus(
            nodes=tuple(group.nodes.values()),
            is_up=bool(group.place) and len(group.nodes) == group.size,
            is_busy=group.ticket is not None,
            idle=0.0 if group.idle_since is None else now - group.idle_since,
            lost=0.0 if group.loss is None else now - group.loss[0],
            loss=None if group.loss is None else group.loss[1:],
            hung=hung,
            is_closing=group.closing is not None,
            fault=group.fault,
        )

    def _close(self, group: _Run) -> None:
        group.closing = self._clock() if group.closing is None else group.closing

    def _first(self) -> int | None:
        """Returns the ticket of the first queued trial that no other group still trains."""
        running = {self._trials[run.ticket].number for run in self._runs.values() if run.ticket in self._trials}
        return next((ticket for ticket in self._queue if self._trials[ticket].number not in running), None)

    def _lose(self, group: _Run, kind: str, reason: str) -> None:
        ticket = group.ticket
        if ticket is not None and (trial := self._trials.get(ticket)) is not None and not trial.has_ended:
            if len(trial.begun) < group.size and trial.stop is Stop.NO:
                trial.run, trial.begun = None, set()
                self._queue.insert(0, ticket)
            elif trial.stop is Stop.NO:
                trial.end(LOST, {"kind": kind, "reason": reason})
            else:
                trial.end(STOPPED)
        self._release(group)

    def _end(self, ticket: int, how: str) -> None:
        trial = self._trials.get(ticket)
        if trial is None or trial.run is None:
            return
        trial.end(how)
        group = self._runs.get(trial.run)
        if group is not None and group.ticket == ticket:
            self._release(group)

    def _release(self, group: _Run) -> None:
        """Takes its trial from a group."""
        ticket, group.ticket, group.loss = group.ticket, None, None
        if ticket is not None:
            self._forget(ticket)

    def _forget(self, ticket: int) -> None:
        """Forgets a trial that neither a group nor a reader needs any more."""
        trial = self._trials.get(ticket)
        is_held = ticket in self._queue or any(run.ticket == ticket for run in self._runs.values())
        if trial is not None and not trial.is_unread and not is_held:
            del self._trials[ticket]

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, is_true: Callable[[], bool], seconds: float) -> None:
        """Waits until something holds, but no longer than so many seconds."""
        try:
            async with self._changed:
                await asyncio.wait_for(self._changed.wait_for(is_true), seconds)
        except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
            return
