"""The terminal itself: results go to standard output, everything else to standard error."""

from __future__ import annotations

import errno
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import typer
from rich.console import Console

from cdn_tune.errors import CdnTuneError

_MENDABLE = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EROFS, errno.ENOSPC}
_FILE_WIDTH = 140  # where there is no terminal to ask


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=_FILE_WIDTH)


out = _console()
err = _console(stderr=True)
DEBUG = "CDN_TUNE_DEBUG"
GOES_ON = "the same command goes on from the last checkpoint"


@contextmanager
def one_line_errors(interrupted: str = "") -> Iterator[None]:
    """Turns errors into one line and an exit code: 2 for what the user can mend, 1 for what we have to, 130 for Ctrl-C.

    With CDN_TUNE_DEBUG=1 the traceback is shown as well.

    Args:
        interrupted: What is told after Ctrl-C, such as `GOES_ON`.
    """
    try:
        yield
    except CdnTuneError as error:
        if os.environ.get(DEBUG) == "1":
            traceback.print_exc()
        for line in str(error).splitlines():
            _tell(f"error: {line}")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        _tell(f"interrupted; {interrupted}" if interrupted else "interrupted")
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort):
        raise
    except OSError as error:
        if error.errno not in _MENDABLE:
            _internal(error)
        _tell(f"error: {str(error.filename)[:200]}: {error.strerror}; give another path, or mend its permissions")
        raise typer.Exit(2) from None
    except Exception as error:
        _internal(error)


def _internal(error: Exception) -> NoReturn:
    if os.environ.get(DEBUG) == "1":
        traceback.print_exc()
    first = (str(error).splitlines() or [""])[0]
    _tell(f"internal error: {type(error).__name__}: {first} (our fault; {DEBUG}=1 shows the traceback to report)")
    raise typer.Exit(1) from None


def warn(text: str) -> None:
    """Prints a warning line."""
    _tell(f"warning: {text}")


def _tell(line: str) -> None:
    err.print(line, markup=False, soft_wrap=True, style="red" if "error" in line[:16] else "yellow")


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM (a cluster's preemption) ends a command as Ctrl-C does: everything finished is on disk.

    Ray starts jobs with SIGINT blocked, so that neither would ever arrive.
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
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGTERM, before)
