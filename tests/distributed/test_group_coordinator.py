"""The coordinator's bookkeeping, without Ray: who gets which trial, what becomes of one whose workers are lost."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from cdn_tune.distributed.group_coordinator import (
    FAILED,
    FINISHED,
    IDLE,
    LOST,
    NODE,
    OVER,
    REPORT,
    STARTS,
    STOPPED,
    WORKER,
    Coordinator,
    RunStatus,
)
from cdn_tune.training.reports import Stop

RUN, OTHER, PLACE = 7, 8, "place"


class Desk:
    """A coordinator with a clock of its own, in one event loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.loop = asyncio.new_event_loop()
        self.it = self.loop.run_until_complete(self._make())

    async def _make(self) -> Coordinator:
        return Coordinator(lambda: self.now)

    def __call__(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def together(self, *coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
        async def gather() -> list[Any]:
            return await asyncio.gather(*coroutines)

        return list(self(gather()))

    def up(self, run: int = RUN, place: str = PLACE, size: int = 2, opened: bool = True) -> None:
        """Starts a group's workers."""
        if opened:
            self(self.it.open(run, size))
        for rank in range(size):
            self(self.it.hello(run, place, rank, f"node-{rank}"))

    def take(self, run: int = RUN, place: str = PLACE) -> Any:
        return self(self.it.take(run, place, 0.01))

    def train(self, number: int, run: int = RUN, place: str = PLACE) -> int:
        """Has a group begin a trial; returns its ticket."""
        ticket: int = self(self.it.submit(number, {"folder": str(number)}))
        assert self.take(run, place) == {"ticket": ticket, "folder": str(number)}
        for rank in (0, 1):
            self(self.it.begin(ticket, rank))
        return ticket

    def news(self, ticket: int) -> Any:
        return self(self.it.next(ticket, 0.01))

    def state(self, run: int = RUN) -> RunStatus:
        found: RunStatus = self(self.it.status())["runs"][run]
        return found


@pytest.fixture
def desk() -> Any:
    made = Desk()
    yield made
    made.loop.close()


def test_a_trial_goes_to_a_group_and_its_reports_come_back_in_order(desk: Desk) -> None:
    desk.up()
    assert desk.take() == IDLE
    ticket = desk.train(3)
    for epoch in (1, 2):
        desk(desk.it.report(ticket, REPORT, {"epoch": epoch}))
    desk(desk.it.end(ticket, FINISHED))
    assert desk.news(ticket) == [(REPORT, {"epoch": 1}), (REPORT, {"epoch": 2}), (FINISHED, None)]
    assert desk.news(ticket)[0][0] == LOST  # fetched once
    assert desk.take() == IDLE


def test_whoever_waits_is_woken(desk: Desk) -> None:
    """A group by a trial, a relay by its report, a worker by the wish to stop."""
    desk.up()
    trial, ticket = desk.together(desk.it.take(RUN, PLACE, 60.0), desk.it.submit(0, {}))
    assert trial == {"ticket": ticket}
    news, _ = desk.together(desk.it.next(ticket, 60.0), desk.it.report(ticket, REPORT, {}))
    assert news == [(REPORT, {})]
    wanted, _ = desk.together(desk.it.stop_wanted(ticket, Stop.NO, 60.0), desk.it.save_all())
    assert wanted is Stop.SAVE
    wanted, _ = desk.together(desk.it.stop_wanted(ticket, Stop.SAVE, 60.0), desk.it.end(ticket, STOPPED))
    assert wanted is None


def test_a_trial_that_is_given_up_is_forgotten(desk: Desk) -> None:
    """Its late reports are dropped, its group is free only when it has left, and its number waits for that."""
    desk.up()
    desk.up(OTHER, "other")
    ticket = desk.train(0)
    desk(desk.it.stop(0))
    again = desk(desk.it.submit(0, {}))
    desk(desk.it.report(ticket, REPORT, {"epoch": 5}))
    assert desk.take(OTHER, "other") == IDLE, "two groups would train one trial"
    desk(desk.it.end(ticket, STOPPED))
    assert desk.take(OTHER, "other") == {"ticket": again}
    assert list(desk.it._trials) == [again]


@pytest.mark.parametrize("how", ["drain", "save_all"])
def test_a_trial_that_no_group_has_taken_ends_at_once(desk: Desk, how: str) -> None:
    """When no further trial is to begin; so does one that is submitted later."""
    desk.up(OTHER, "other")
    running = desk.train(1, OTHER, "other")
    queued = desk(desk.it.submit(0, {}))
    desk(getattr(desk.it, how)())
    assert desk.news(queued) == desk.news(desk(desk.it.submit(2, {}))) == [(STOPPED, None)]
    desk.up()
    assert desk.take() == IDLE
    assert desk(desk.it.stop_wanted(running, Stop.NO, 0.01)) is (Stop.SAVE if how == "save_all" else Stop.NO)


def test_saving_does_not_undo_giving_up(desk: Desk) -> None:
    desk.up()
    ticket = desk.train(0)
    desk(desk.it.stop(0))
    desk(desk.it.save_all())
    assert desk(desk.it.stop_wanted(ticket, Stop.NO, 0.01)) is Stop.DISCARD


@pytest.mark.parametrize(
    "notice", ["callback, then new workers", "new workers", "callback, then pool", "end of the run"]
)
def test_lost_workers_end_their_trial_once(desk: Desk, notice: str) -> None:
    desk.up()
    ticket = desk.train(0)
    kind, reason = WORKER, "a worker of its group died"
    if notice.startswith("callback"):
        kind, reason = NODE, "the node has died"
        desk(desk.it.lost(RUN, kind, reason))
        assert desk.news(ticket) == []  # the pool or the new workers decide
        assert desk.state().loss == (kind, reason)
    if notice.endswith("new workers"):
        desk.up(place="new", opened=False)
    elif notice == "callback, then pool":
        kind, reason = NODE, "the pool knows better"
        desk(desk.it.lose(RUN, kind, reason))
    else:
        kind, reason = NODE, "the controller died"
        desk(desk.it.remove(RUN, reason))
    assert desk.news(ticket) == [(LOST, {"kind": kind, "reason": reason})]
    assert desk(desk.it.stop_wanted(ticket, Stop.NO, 60.0)) is None
    assert desk.take() == OVER, "a worker of the former group is still there"


def test_a_trial_that_its_workers_never_received_is_queued_again(desk: Desk) -> None:
    desk.up()
    ticket = desk(desk.it.submit(0, {}))
    later = desk(desk.it.submit(1, {}))
    assert desk.take()["ticket"] == ticket
    desk(desk.it.begin(ticket, 0))
    desk.now = 40.0
    assert desk.state().hung == 40.0  # rank 1 does not answer
    desk.up(place="new", opened=False)
    assert desk.take(place="new")["ticket"] == ticket
    assert desk.news(ticket) == desk.news(later) == []


def test_a_lost_trial_that_was_being_stopped_is_stopped(desk: Desk) -> None:
    desk.up()
    ticket = desk.train(0)
    desk(desk.it.save_all())
    desk.up(place="new", opened=False)
    assert desk.news(ticket) == [(STOPPED, None)]


def test_a_group_goes_on_after_an_error_of_all_its_workers(desk: Desk) -> None:
    desk.up()
    ticket = desk.train(0)
    answers = desk.together(desk.it.fail(ticket, 1, b"first", 60.0), desk.it.fail(ticket, 0, b"second", 60.0))
    assert answers == [True, True]
    assert desk.news(ticket) == [(FAILED, b"first")]
    assert desk.take() == IDLE
    assert not desk.it._trials


def test_a_group_is_started_anew_after_an_error_of_one_worker(desk: Desk) -> None:
    desk.up()
    ticket = desk.train(0)
    assert desk(desk.it.fail(ticket, 1, b"alone", 0.01)) is False
    desk.up(place="new", opened=False)
    assert desk.news(ticket) == [(FAILED, b"alone")]  # and no loss after it
    assert desk.take(place="new") == IDLE


def test_the_second_worker_may_fail_after_the_failure_was_fetched(desk: Desk) -> None:
    desk.up()
    ticket = desk.train(0)
    first, news, second = desk.together(
        desk.it.fail(ticket, 0, b"error", 60.0), desk.it.next(ticket, 60.0), desk.it.fail(ticket, 1, b"error", 60.0)
    )
    assert (first, second) == (True, True)
    assert news == [(FAILED, b"error")]


def test_workers_that_start_again_and_again_without_a_trial_are_at_fault(desk: Desk) -> None:
    desk.up()
    desk.train(0)  # one trial, and the count begins anew
    for place in range(STARTS):
        desk.up(place=f"{place}", opened=False)
    assert desk.state().fault == ""
    desk.up(place="last", opened=False)
    assert f"started {STARTS} times without" in desk.state().fault
    assert desk.take(place="last") == OVER


def test_a_group_ends_when_it_has_no_trial(desk: Desk) -> None:
    desk.up()
    ticket = desk.train(0)
    desk(desk.it.close_run(RUN))
    assert desk(desk.it.stop_wanted(ticket, Stop.NO, 0.01)) is Stop.NO
    desk(desk.it.end(ticket, FINISHED))
    desk(desk.it.submit(1, {}))
    assert desk.take() == OVER
    desk.now = 99.0
    assert desk.state().hung == 99.0  # it does not end


def test_what_is_closed_takes_and_gives_nothing(desk: Desk) -> None:
    desk.up()
    ticket = desk.train(0)
    desk(desk.it.close())
    assert desk(desk.it.stop_wanted(ticket, Stop.NO, 0.01)) is Stop.DISCARD
    assert desk.news(desk(desk.it.submit(1, {}))) == [(STOPPED, None)]
    desk(desk.it.end(ticket, STOPPED))
    assert desk.take() == OVER
    assert desk.take(OTHER) == OVER
