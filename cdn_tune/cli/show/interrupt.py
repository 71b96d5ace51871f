"""Ctrl-C: once to stop in order, twice to leave at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from cdn_tune.cli.show.output import print_note


class GracefulStop:
    """While it is entered, the first interrupt only requests a stop; the second raises `KeyboardInterrupt`.

    In any thread but the main one it changes nothing.

    Args:
        means: What happens on the first, in words.
    """

    def __init__(self, means: str = "stopping after this step, with a checkpoint") -> None:
        self._means = means
        self._asked = False
        self._before: signal.Handlers | object = None

    def __call__(self) -> bool:
        """Returns whether an interrupt has arrived."""
        return self._asked

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print_note(f"{self._means}; Ctrl-C again leaves at once", "yellow")
