"""A report that stays up to date while its run goes on: served to this machine only, built when it is requested.

Of its videos, those on the page are served, by number; nothing else of the disk is.
"""

import hashlib
import mimetypes
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cdn_tune.errors import CdnTuneError, RunError
from cdn_tune.report.page import VIDEO, VIEWS, Builder, Page
from cdn_tune.report.record import stamp

HOST = "127.0.0.1"
_PAUSE = 2.0  # seconds between two builds, at least; more where building takes longer
_SHARE = 4  # of the time that building may take: a quarter
_ROOM = 32  # connections at a time
_BLOCK = 1 << 18  # bytes of a video read at once
_SECONDS = 20.0  # that a client may be silent


class LiveReport:
    """The newest page of a run.

    Args:
        run: Folder of a train or search run.
        views: As for `Builder`.
        videos: As for `Builder`.
        on_notice: Called with one line when the record could not be read; the page before is shown meanwhile.

    Raises:
        CdnTuneError: If the folder is no run.
    """

    def __init__(
        self,
        run: Path,
        views: int = VIEWS,
        on_notice: Callable[[str], None] = lambda _: None,
        videos: Path | None = None,
    ) -> None:
        self._run, self.notice = run, on_notice
        self._builder = Builder(run, views, live=True, videos=videos)
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

    def video(self, number: str) -> Path | None:
        """Returns the file of a video by its number on the page; None: there is none."""
        files = self._page.videos
        return files[int(number)] if re.fullmatch("[0-9]{1,9}", number) and int(number) < len(files) else None

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
        """Serves the page, its stamp and its videos; anything else is not found."""

        timeout = _SECONDS

        def do_GET(self) -> None:
            contents = {
                "/": ("text/html; charset=utf-8", report.page),
                "/stamp": ("text/plain; charset=utf-8", report.stamp),
            }
            path, port = self.path.partition("?")[0], self.connection.getsockname()[1]
            if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
                self.send_error(HTTPStatus.FORBIDDEN, "served to this machine only")  # a foreign name led here
            elif path in contents:
                kind, content = contents[path]
                body = content().encode()
                self._begin(HTTPStatus.OK, {"Content-Type": kind, "Content-Length": str(len(body))})
                self.wfile.write(body)
            elif (video := report.video(path.removeprefix(f"/{VIDEO}"))) is not None:
                self._send_video(video)
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _begin(self, status: HTTPStatus, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}.items():
                self.send_header(name, value)
            self.end_headers()

        def _send_video(self, path: Path) -> None:
            """Sends a video, or the part of it that a player asks for."""
            try:
                file = path.open("rb")
            except OSError:  # gone since the page was built
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            with file:
                size = file.seek(0, os.SEEK_END)
                asked = re.fullmatch("bytes=([0-9]{1,18})-([0-9]{0,18})", self.headers.get("Range") or "")
                first = int(asked[1]) if asked else 0
                last = min(int(asked[2]), size - 1) if asked and asked[2] else size - 1
                if first > last:
                    self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                    return
                guess = mimetypes.guess_type(path.name)[0] or ""
                kind = guess if guess.startswith("video/") else "application/octet-stream"
                headers = {"Content-Type": kind, "Content-Length": str(last - first + 1), "Accept-Ranges": "bytes"}
                if asked:
                    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
                self._begin(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK, headers)
                file.seek(first)
                left = last - first + 1
                while left and (block := file.read(min(left, _BLOCK))):
                    self.wfile.write(block)
                    left -= len(block)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's name
            """Logs nothing: a line per request would bury what matters."""

    return Handler
