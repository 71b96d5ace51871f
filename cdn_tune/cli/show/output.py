"""The terminal: results to standard output, all else to standard error; one-line errors, Ctrl-C, plain tables."""

import errno
import json
import os
import signal
import threading
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cdn_tune.errors import CdnTuneError

_MENDABLE = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EROFS, errno.ENOSPC}
_LONGEST = 1000  # characters of an error's line, which may name a value of any length
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
UNKNOWN = "--"


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
            print_note(f"error: {line if len(line) <= _LONGEST else f'{line[:_LONGEST]}...'}", "red")
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
    """Raises `KeyboardInterrupt` again with a hint at what can be done next, such as `GOES_ON`, as its text."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(hint) from None


@contextmanager
def terminable(hint: str = GOES_ON) -> Iterator[None]:
    """As `interruptible`; SIGTERM (a cluster's preemption) ends the command as Ctrl-C does.

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
        with interruptible(hint):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGTERM, before)


class GracefulStop:
    """While it is entered, the first Ctrl-C only requests a stop; the second raises `KeyboardInterrupt`.

    In any thread but the main one it changes nothing.

    Args:
        means: What happens on the first, in words.
    """

    def __init__(self, means: str = "stopping after this step, with a checkpoint") -> None:
        self._means, self._requested = means, False
        self._before: Any = None

    def __call__(self) -> bool:
        """Returns whether a Ctrl-C has arrived."""
        return self._requested

    def __enter__(self) -> "GracefulStop":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
        print_note(f"{self._means}; Ctrl-C again leaves at once", "yellow")


def size_text(size: float) -> str:
    """Returns a number of bytes as KiB, MiB, GiB or TiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def duration_text(seconds: float) -> str:
    """Returns a duration in its two largest units: ``2 d 3 h``, ``1 h 5 min``, ``2 min 7 s``, ``12.3 s``, ``45 ms``."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    for size, unit, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        rounded = round(seconds / part) * part
        if rounded >= size:
            rest = rounded % size // part
            return f"{rounded // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{seconds:.3g} s"


def head_table(
    *heads: str, right: Collection[str] = (), fold: Collection[str] | bool = (), edge: bool = False
) -> Table:
    """Returns an empty table with heads.

    Args:
        heads: Of the columns.
        right: Which of them are justified to the right.
        fold: Which of them, or whether all, may run over several lines.
        edge: Whether an empty line is above and below.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=edge, pad_edge=False)
    for head in heads:
        folds = fold if isinstance(fold, bool) else head in fold
        table.add_column(head, justify="right" if head in right else "left", overflow="fold", no_wrap=not folds)
    return table


def facts_table(facts: Iterable[tuple[str, str]]) -> Table:
    """Returns (name, text) facts as a table without heads."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for head, text in facts:
        table.add_row(head, escape(text))
    return table
