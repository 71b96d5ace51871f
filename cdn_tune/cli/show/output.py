"""The terminal: results go to standard output, all else to standard error; an error is one line and an exit code."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import typer
from rich.console import Console

from cdn_tune.errors import CdnTuneError

_MENDABLE = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EROFS, errno.ENOSPC}
_FILE_WIDTH = 140  # of output that goes to no terminal
_UsageError: type[BaseException] = typer.BadParameter.__base__  # type: ignore[assignment]  # of all errors of usage


def console(stderr: bool = False) -> Console:
    """Returns a console, of a fixed width where there is no terminal."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=_FILE_WIDTH)


out = console()
err = console(stderr=True)
DEBUG = "CDN_TUNE_DEBUG"
INTERRUPTED = 130
GOES_ON = "the same command goes on from the last checkpoint"


def print_line(text: str, style: str = "") -> None:
    """Prints a line of results as it is: neither wrapped nor read as markup."""
    out.print(text, markup=False, emoji=False, soft_wrap=True, style=style)


def print_note(text: str, style: str = "") -> None:
    """Prints a line to standard error, as it is."""
    err.print(text, markup=False, emoji=False, soft_wrap=True, style=style)


def print_json(value: Any) -> None:
    """Prints a value as indented JSON."""
    out.file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def warn(text: str) -> None:
    """Prints a warning line."""
    print_note(f"warning: {text}", "yellow")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns exceptions into one line and an exit code: 2 for the user's mistakes, 1 for ours, 130 for Ctrl-C.

    With CDN_TUNE_DEBUG=1 the traceback is shown as well.
    """
    try:
        yield
    except CdnTuneError as error:
        _show_traceback()
        for line in str(error).splitlines():
            print_note(f"error: {line}", "red")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt as interrupt:
        print_note(f"interrupted; {interrupt}" if str(interrupt) else "interrupted", "yellow")
        raise typer.Exit(INTERRUPTED) from None
    except (typer.Exit, typer.Abort, _UsageError):
        raise
    except OSError as error:
        if error.errno not in _MENDABLE:
            _internal(error)
        name = str(error.filename)[:200]
        print_note(f"error: {name}: {error.strerror}; give another path, or mend its permissions", "red")
        raise typer.Exit(2) from None
    except Exception as error:
        _internal(error)


def _internal(error: Exception) -> NoReturn:
    _show_traceback()
    first = (str(error).splitlines() or [""])[0]
    text = f"internal error: {type(error).__name__}: {first} (our fault; {DEBUG}=1 shows the traceback to report)"
    print_note(text, "red")
    raise typer.Exit(1) from None


def _show_traceback() -> None:
    if os.environ.get(DEBUG) == "1":
        traceback.print_exc()


@contextmanager
def interruptible(hint: str) -> Iterator[None]:
    """Adds to Ctrl-C's line what can be done next, such as `GOES_ON`.

    Raises:
        KeyboardInterrupt: With the hint as its text.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(hint) from None


@contextmanager
def terminable(hint: str = GOES_ON) -> Iterator[None]:
    """Lets SIGTERM (a cluster's preemption) end a command as Ctrl-C does: everything finished is on disk.

    Ray starts jobs with SIGINT blocked, so that neither would ever arrive.

    Args:
        hint: As of `interruptible`.

    Raises:
        KeyboardInterrupt: With the hint as its text.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell script has it for what it starts with &
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGINT)  # Ray Tune ends gracefully on it, Python raises KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        with interruptible(hint):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGTERM, before)
