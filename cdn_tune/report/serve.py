"""A report that stays up to date while its run goes on: served to this machine only, built when it is requested."""

import hashlib
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cdn_tune.errors import CdnTuneError, RunError
from cdn_tune.report.page import VIEWS, Builder, Page
from cdn_tune.report.record import stamp

HOST = "127.0.0.1"
_PAUSE = 2.0  # seconds between two builds, at least; more where building takes longer
_SHARE = 4  # of the time that building may take: a quarter


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
        self._run, self._notice = run, on_notice
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
                    self._notice(str(error).splitlines()[0])
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
        server = ThreadingHTTPServer((HOST, port), _handler(report))
    except OSError as error:
        raise RunError(f"--port {port}: cannot be served on ({error.strerror}); choose another, or 0 for any") from None
    server.daemon_threads = True
    return server


def _handler(report: LiveReport) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Serves the page and its stamp; anything else is not found."""

        def do_GET(self) -> None:
            contents = {
                "/": ("text/html; charset=utf-8", report.page),
                "/stamp": ("text/plain; charset=utf-8", report.stamp),
            }
            port = self.connection.getsockname()[1]
            if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
                self.send_error(HTTPStatus.FORBIDDEN, "served to this machine only")  # a foreign name led here
            elif self.path not in contents:
                self.send_error(HTTPStatus.NOT_FOUND)
            else:
                kind, content = contents[self.path]
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
