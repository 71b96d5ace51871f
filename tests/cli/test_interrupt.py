"""Ctrl-C: once asks, twice leaves; afterwards it is what it was."""

import os
import pty
import signal
import sys
import threading
from pathlib import Path

import pytest

from cdn_tune.cli.show.output import GracefulStop, terminable


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_preemption_and_a_lost_terminal_are_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="goes on"), terminable():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    with terminable(), GracefulStop() as stop:
        os.kill(os.getpid(), number)
        assert stop()


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminable():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_outlives_its_terminal(tmp_path: Path) -> None:
    """What it prints then is an error of the terminal's, which must not end it before its checkpoint."""
    code = (
        "import sys, time\n"
        "from cdn_tune.cli.show.output import GracefulStop, out, terminable\n"
        "with terminable(), GracefulStop() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop():\n"
        "        time.sleep(0.01)\n"
        "    out.print('saving')\n"
        "    open(sys.argv[1], 'w').write('saved')\n"
    )
    saved = tmp_path / "saved"
    child, terminal = pty.fork()  # the child leads a session on a terminal of its own
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", code, str(saved)])  # noqa: S606
    assert os.read(terminal, 5) == b"ready"
    os.close(terminal)
    assert os.waitpid(child, 0)[1] == 0
    assert saved.read_text() == "saved"
