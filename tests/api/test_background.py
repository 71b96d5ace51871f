"""Work in a thread: Ctrl-C asks it to stop, twice leaves; callbacks run where they are wanted, and stop it too."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from cdn_tune.api.background import Background


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def worked(background: Background, log: list[str]) -> Callable[[], None]:
    """Work that goes on until it is to stop, and then saves."""

    def work() -> None:
        log.append("begun")
        while not background.stop():
            threading.Event().wait(0.01)
        log.append("saved")

    return work


def test_callbacks_run_in_the_calling_thread_and_in_order() -> None:
    background, seen = Background(), list[tuple[int, bool]]()
    here = threading.current_thread()
    call = background.callback(lambda number: seen.append((number, threading.current_thread() is here)))
    elsewhere: list[bool] = []

    def work() -> None:
        elsewhere.append(threading.current_thread() is not here)
        for number in range(50):
            call(number)
            assert len(seen) == number + 1  # the work waits for each

    background.run(work)
    assert seen == [(number, True) for number in range(50)]
    assert elsewhere == [True]


def test_the_first_ctrl_c_stops_in_order() -> None:
    before = signal.getsignal(signal.SIGINT)
    background, log = Background(), list[str]()
    work = worked(background, log)

    def interrupted() -> None:
        assert signal.getsignal(signal.SIGINT) is before  # no handler is taken
        interrupt()
        work()

    with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
        background.run(interrupted)
    assert log == ["begun", "saved"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("how", ["signal", "raised"])
def test_a_ctrl_c_within_a_callback_stops_in_order(how: str) -> None:
    background, log = Background(), list[str]()

    def callback(_: object) -> None:
        if how == "raised":
            raise KeyboardInterrupt
        interrupt()

    call, rest = background.callback(callback), worked(background, log)

    def work() -> None:
        call(None)
        rest()

    with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
        background.run(work)
    assert log == ["begun", "saved"]


def test_the_second_ctrl_c_leaves_and_the_work_stops_by_itself() -> None:
    background, saved, released = Background(), threading.Event(), threading.Event()

    def work() -> None:
        interrupt()
        while not background.stop():
            threading.Event().wait(0.01)
        interrupt()
        released.wait(60)  # it takes long to save
        saved.set()

    with pytest.raises(KeyboardInterrupt) as caught:
        background.run(work)
    assert not str(caught.value)
    assert not saved.is_set()
    released.set()
    assert saved.wait(60)


def test_what_a_callback_raises_stops_the_work_in_order_and_is_raised() -> None:
    background, log, calls = Background(), list[str](), list[int]()

    def callback(number: int) -> None:
        calls.append(number)
        raise ZeroDivisionError("mine")

    call, rest = background.callback(callback), worked(background, log)

    def work() -> None:
        call(1)
        call(2)  # is not called again
        rest()

    with pytest.raises(ZeroDivisionError, match="mine"):
        background.run(work)
    assert (log, calls) == (["begun", "saved"], [1])


def test_a_callback_that_returns_true_stops_the_work() -> None:
    background, log = Background(), list[str]()
    call, rest = background.callback(lambda number: number == 2), worked(background, log)

    def work() -> None:
        call(1)
        assert not background.stop()
        call(2)
        assert background.stop()
        rest()
        raise KeyboardInterrupt  # as a training does that was asked to stop

    background.run(work)
    assert log == ["begun", "saved"]


@pytest.mark.parametrize("error", [ValueError("a"), SystemExit(3)])
def test_what_the_work_raises_is_raised(error: BaseException) -> None:
    def work() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        Background().run(work)
    assert caught.value is error


def test_in_another_thread_all_runs_there() -> None:
    seen: list[threading.Thread] = []

    def elsewhere() -> None:
        background = Background()
        call = background.callback(lambda _: seen.append(threading.current_thread()))
        background.run(lambda: call(None))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [thread]
