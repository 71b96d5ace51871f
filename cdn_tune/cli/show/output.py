"""The terminal: results to standard output, all else to standard error; one-line errors, Ctrl-C, plain tables.

What is printed comes from files, clusters and people: whatever a terminal would obey instead of showing it is replaced
here, and nothing is printed past this file.
"""

import errno
import json
import logging
import os
import re
import signal
import threading
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import typer
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cdn_tune.errors import CdnTuneError

_NO_HOME = "Could not determine home directory"  # what pathlib says of ~no-such-user
_MENDABLE = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EROFS, errno.ENOSPC}
_LONGEST = 1000  # characters of an error's line, which may name a value of any length
_FILE_WIDTH = 140  # of output that goes to no terminal
_UsageError: type[BaseException] = typer.BadParameter.__base__  # type: ignore[assignment]  # of all errors of usage


# Control characters but for tab and line feed, what turns the direction of writing, other line breaks, and halves of
# characters, which no encoding has.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")


def visible(text: str) -> str:
    """Returns a text with a replacement character for each one that a terminal would obey, or could not show."""
    return _OBEYED.sub("\ufffd", text)


class Terminal(Console):
    """A console on which text is only text: what is printed moves no cursor and sets no title."""

    def render_str(self, text: str, **settings: Any) -> Text:
        """Returns a text to be laid out."""
        return super().render_str(visible(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yields the segments of a renderable; rich's own control codes are apart from its text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def console(stderr: bool = False) -> Console:
    """Returns a console, of a fixed width where there is no terminal."""
    found = Terminal(stderr=stderr, highlight=False)
    return found if found.is_terminal else Terminal(stderr=stderr, highlight=False, width=_FILE_WIDTH)


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


def print_text(text: str) -> None:
    """Prints text as a file would hold it: CSV, YAML."""
    out.file.write(visible(text))


def log_text(text: str) -> str:
    """Returns what a program has printed: without colours, and with lines in place of what was written over."""
    return visible(re.sub("\r\n?", "\n", _COLOUR.sub("", text)))


def print_log(text: str) -> None:
    """Prints what a program has printed; see `log_text`."""
    print_text(log_text(text))
    out.file.flush()


def print_json(value: Any) -> None:
    """Prints a value as indented JSON."""
    print_json_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_json_text(text: str) -> None:
    """Prints JSON, in which what a terminal would obey can be escaped, as it stands in strings only."""
    out.file.write(_OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


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
    except (typer.Exit, typer.Abort):
        raise
    except _UsageError as error:  # typer prints it
        error.message = visible(error.message)  # type: ignore[attr-defined]
        raise
    except OSError as error:
        if error.errno not in _MENDABLE:
            _internal(error)
        name = str(error.filename)[:200]
        print_note(f"error: {name}: {error.strerror}; give another path, or mend its permissions", "red")
        raise typer.Exit(2) from None
    except RuntimeError as error:
        if not str(error).startswith(_NO_HOME):
            _internal(error)
        print_note("error: a path begins with ~ and the name of no user; write it out", "red")
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
        print_note(traceback.format_exc())


class _Visible(logging.Formatter):
    """Formats log records for the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns a record's text."""
        return visible(super().format(record))


def clean_logging() -> None:
    """Has warnings of libraries printed as all else is, where they have set up nothing of their own."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Visible())


@contextmanager
def interruptible(hint: str) -> Iterator[None]:
    """Raises `KeyboardInterrupt` again with a hint at what can be done next, such as `GOES_ON`, as its text."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(hint) from None


@contextmanager
def terminable(hint: str = GOES_ON) -> Iterator[None]:
    """As `interruptible`; SIGTERM (a cluster's preemption) and SIGHUP (a lost terminal) end the command as Ctrl-C does.

    A SIGHUP that was ignored (nohup) stays so. Ray starts jobs with SIGINT blocked, so that none would ever arrive.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminals = [file for file in range(3) if os.isatty(file)]

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:  # the terminal is gone: to write there is an error that would end the command now
            with open(os.devnull, "r+b", buffering=0) as nowhere:
                for file in terminals:
                    os.dup2(nowhere.fileno(), file)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell script has it for what it starts with &
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGINT)  # Ray Tune ends gracefully on it, Python raises KeyboardInterrupt

    ending = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, interrupt) for each in ending}
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        with interruptible(hint):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for each, handler in before.items():
            signal.signal(each, handler)


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
