"""What Ray prints in this process, such as that a worker was killed, goes to its logger, not to the terminal."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_RAY_THREADS = "ray_"  # the names of the threads in which Ray prints what a cluster reports begin so

_inside = threading.local()  # `logs` while a thread logs: a handler may itself write to a terminal


class _WithoutRay:
    """A text stream that hands what Ray's threads write to Ray's logger, and passes on all else.

    Args:
        stream: The stream.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes or logs a text; returns its length."""
        if getattr(_inside, "logs", False) or not threading.current_thread().name.startswith(_RAY_THREADS):
            return int(self._stream.write(text))
        if text.strip():
            _inside.logs = True
            try:
                logging.getLogger("ray").warning("%s", text.strip())
            finally:
                _inside.logs = False
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def ray_output_logged() -> Iterator[None]:
    """Has the logger ``ray`` receive what Ray prints meanwhile; no setting of Ray's keeps it from printing."""
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    ours = {name: _WithoutRay(stream) for name, stream in before.items()}
    for name, stream in ours.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in ours.items():
            if getattr(sys, name) is stream:
                setattr(sys, name, before[name])
