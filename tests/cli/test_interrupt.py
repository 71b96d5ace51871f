"""Ctrl-C: once asks, twice leaves; afterwards it is what it was."""

import os
import signal
import threading

import pytest

from cdn_tune.cli.show.output import GracefulStop


def test_the_first_asks_and_the_second_leaves() -> None:
    before = signal.getsignal(signal.SIGINT)
    with GracefulStop() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_changes_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def enter() -> None:
        with GracefulStop():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
