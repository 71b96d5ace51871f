"""A proxy that stands before an HTTP server of the tests: it counts requests, and fails, delays or replaces answers."""

from __future__ import annotations

import random
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_HOP = ("connection", "expect", "keep-alive", "transfer-encoding")  # headers of one connection, not of a message


class FaultProxy(ThreadingHTTPServer):
    """Forwards to a server on this machine; a thread of this process, from entering it to leaving it.

    Args:
        port: Of the server on loopback.

    Attributes:
        requests: ``METHOD PATH`` of all requests so far.
        fail: How many of the next requests are answered with `answer` instead of being forwarded.
        share: Of the other requests, how many are so, or are forwarded after a second; by chance, seeded.
        delay: Seconds before each request is forwarded.
        answer: Status, content type and content of what is answered instead.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[str] = []
        self._lock, self._chance = threading.Lock(), random.Random(0)
        self.heal()
        super().__init__(("127.0.0.1", 0), _Handler)

    def heal(self) -> None:
        """Ends all faults."""
        self.fail, self.share, self.delay = 0, 0.0, 0.0
        self.answer = (503, "application/xml", b"<Error><Code>ServiceUnavailable</Code></Error>")

    @property
    def endpoint(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.server_address[1]}"

    def fault(self, request: str) -> tuple[bool, float]:
        """Records a request; returns whether it fails, and after how many seconds it is answered."""
        with self._lock:
            self.requests.append(request)
            if self.fail > 0:
                self.fail -= 1
                return True, self.delay
            if self.share and self._chance.random() < self.share:
                return (True, self.delay) if self._chance.random() < 0.5 else (False, self.delay + 1.0)
            return False, self.delay

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def do_GET(self) -> None:
        content = self._body()
        fails, seconds = self.server.fault(f"{self.command} {unquote(urlsplit(self.path).path)}")
        time.sleep(seconds)
        if fails:
            status, kind, text = self.server.answer
            self._send(status, [("Content-Type", kind), ("Content-Length", str(len(text)))], text)
            return
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in (*_HOP, "content-length"):
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(content)))
            connection.endheaders(content)
            answer = connection.getresponse()
            found = answer.read()
        except OSError:  # the server is gone, and so is the answer
            self.close_connection = True
            return
        finally:
            connection.close()
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
        if answer.status != 204 and not answer.headers.get("Content-Length"):
            headers.append(("Content-Length", str(len(found))))
        self._send(answer.status, headers, found)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        whole = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return whole

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
