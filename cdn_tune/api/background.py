"""Work in a thread of its own: Ctrl-C in the calling thread stops it in order, and no signal handler is needed."""

import contextvars
import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

from cdn_tune.training.reports import ignore

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.2
_GOES_ON = "the same call goes on from the last checkpoint"
Argument = TypeVar("Argument")


class Background:
    """Runs work in a thread, while the calling thread runs the work's callbacks and takes Ctrl-C.

    The work stops in order, with what it saves then, once `stop` returns True: after a Ctrl-C, or when a callback has
    returned True or raised an error. A second Ctrl-C leaves at once, and the work stops on its own. Callbacks run in
    the calling thread, where notebooks and graphical libraries want them. In any thread but the main one, where no
    Ctrl-C arrives, all runs in that thread.
    """

    def __init__(self) -> None:
        self._is_here = threading.current_thread() is not threading.main_thread()
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._stop, self._ended = threading.Event(), threading.Event()
        self._interrupted = False
        self._fault: Exception | None = None  # of a callback
        self._outcome: BaseException | None = None  # of the work

    def stop(self) -> bool:
        """Returns whether the work is to stop."""
        return self._stop.is_set()

    def callback(self, function: Callable[[Argument], object] | None) -> Callable[[Argument], None]:
        """Returns what the work calls in place of a user's callback: it runs in the calling thread, and never raises.

        The work waits for it.
        """
        if function is None:
            return ignore

        def call(argument: Argument) -> None:
            done = threading.Event()

            def run() -> None:
                try:
                    if self._fault is None and function(argument) is True:
                        self._stop.set()
                except KeyboardInterrupt:
                    self._interrupt()
                except Exception as error:
                    self._fault = error
                    self._stop.set()
                finally:
                    done.set()

            if self._is_here:
                run()
                return
            self._calls.put(run)
            while not done.wait(_POLL_SECONDS):
                if self._interrupted:  # which may have come before the call had begun
                    return

        return call

    def run(self, work: Callable[[], None]) -> None:
        """Runs the work to its end.

        Raises:
            KeyboardInterrupt: If a Ctrl-C stopped it.
            Exception: What a callback, or the work itself, raised.
        """
        try:
            if self._is_here:
                self._work(work)
            else:
                self._wait(work)
        finally:
            self._stop.set()  # of a thread that is left behind
        for error in (self._fault, self._outcome):
            if isinstance(error, Exception):
                raise error
        if self._interrupted:
            raise KeyboardInterrupt(_GOES_ON)
        if self._outcome is not None and not isinstance(self._outcome, KeyboardInterrupt):
            raise self._outcome

    def _wait(self, work: Callable[[], None]) -> None:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._work, work), name="cdn-tune", daemon=True)
        try:
            thread.start()
        except KeyboardInterrupt:
            self._interrupt()
        while not self._ended.is_set():
            try:
                call = self._calls.get(timeout=_POLL_SECONDS)
                if call is not None:
                    call()
            except Empty:
                if not thread.is_alive():  # the Ctrl-C came before it had begun
                    break
            except KeyboardInterrupt:
                self._interrupt()

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._outcome = error
        finally:
            self._ended.set()
            self._calls.put(None)

    def _interrupt(self) -> None:
        """Takes the first Ctrl-C as a request; raises `KeyboardInterrupt` at the second."""
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        self._stop.set()
        _LOG.warning("stopping with a checkpoint; interrupt again to leave at once")
