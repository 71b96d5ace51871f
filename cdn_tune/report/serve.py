"""A report that stays up to date while its run goes on: served to this machine only, built when it is requested."""

import hashlib
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cdn_tune.errors import CdnTuneError, RunError
from cdn_tune.report.page import VIEWS, Builder, Page
from cdn_tune.report.record import stamp

HOST = "127.0.0.1"
_PAUSE = 2.0  # seconds between two builds, at least; more where building takes longer
_SHARE = 4  # of the time that building may take: a quarter
_ROOM = 32  # connections at a time
_SECONDS = 20.0  # that a client may be silent


class LiveReport:
    """The newest page of a run.

    Args:
        run: Folder of a train or search run.
        views: As for `Builder`.
        on_notice: Called with one line when the record could not be read; the page before is shown meanwhile.

    Raises:
        CdnTuneError: If the folder is no run.
    """

    def __init__(self, run: Path, views: int = VIEWS, on_notice: Callable[[str], None] = lambda _: None) -> None:
        self._run, self.notice = run, on_notice
        self._builder = Builder(run, views, live=True)
        self._lock = threading.Lock()
        self._took, self._built = 0.0, 0.0
        self._page = self._build()

    def page(self) -> str:
        """Returns the page, built anew if the record has changed since and the last build is not too recent."""
        with self._lock:  # several requests wait for one build
            if self._is_due():
                try:
                    self._page = self._build()
                except CdnTuneError as error:  # a record in the middle of a change; the next request tries again
                    self._built = time.monotonic()
                    self.notice(str(error).splitlines()[0])
            return self._page.html

    def stamp(self) -> str:
        """Returns a digest that differs from the page's own once it is worth loading anew."""
        state = stamp(self._run) if self._is_due() else self._page.stamp
        return hashlib.sha256(state.encode()).hexdigest()

    def _is_due(self) -> bool:
        rested = time.monotonic() - self._built >= max(_PAUSE, _SHARE * self._took)
        return rested and stamp(self._run) != self._page.stamp

    def _build(self) -> Page:
        begun = time.monotonic()
        page = self._builder.build()
        self._built = time.monotonic()
        self._took = self._built - begun
        return page


def open_server(report: LiveReport, port: int = 0) -> ThreadingHTTPServer:
    """Returns a server of the report on 127.0.0.1, ready for ``serve_forever``.

    Args:
        report: What is served.
        port: 0 for any free one.

    Raises:
        RunError: If the port is taken.
    """
    try:
        return _Server((HOST, port), report)
    except OSError as error:
        raise RunError(f"--port {port}: cannot be served on ({error.strerror}); choose another, or 0 for any") from None


class _Server(ThreadingHTTPServer):
    """A thread per connection, so many at a time; further ones are closed at once."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], report: LiveReport) -> None:
        super().__init__(address, _handler(report))
        self._room, self._notice = threading.BoundedSemaphore(_ROOM), report.notice

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  # socketserver's signature
        error = sys.exception()
        if not isinstance(error, OSError):  # else the client has left, or was silent for too long
            self._notice(f"a request failed: {type(error).__name__}: {error}")


def _handler(report: LiveReport) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Serves the page and its stamp; anything else is not found."""

        timeout = _SECONDS

        def do_GET(self) -> None:
            contents = {
                "/": ("text/html; charset=utf-8", report.page),
                "/stamp": ("text/plain; charset=utf-8", report.stamp),
            }
            path, port = self.path.partition("?")[0], self.connection.getsockname()[1]
            if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
                self.send_error(HTTPStatus.FORBIDDEN, "served to this machine only")  # a foreign name led here
            elif path not in contents:
                self.send_error(HTTPStatus.NOT_FOUND)
            else:
                kind, content = contents[path]
                body = content().encode()
                self.send_response(HTTPStatus.OK)
                headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
                for name, value in {**headers, "X-Content-Type-Options": "nosniff"}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's name
            """Logs nothing: a line per request would bury what matters."""

    return Handler
