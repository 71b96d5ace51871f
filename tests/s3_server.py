"""An S3 server for tests: the parts of the protocol that pyarrow's client (the AWS SDK) speaks, signatures checked.

A process of its own on loopback, run as ``python tests/s3_server.py``; it prints its port. Objects live in memory. The
usual mock, moto, cannot be installed beside this project's versions (botocore wants python-dateutil below 3); set
CDN_TUNE_TEST_S3 to the URL of any other server to run the tests against that (see `tests/object_store.py`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

KEY, SECRET = "test-key", "test-secret"
DENIED = "denied"  # a bucket that nobody may use
CONTROL = "/-control"

buckets: dict[str, dict[str, tuple[bytes, float]]] = {DENIED: {}}
uploads: dict[str, dict[int, bytes]] = {}
requests: list[str] = []
faults = {"fail": 0, "delay": 0.0}
lock = threading.RLock()


class Refused(Exception):  # noqa: N818
    """An answer other than success."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        content = self._body()
        if parts.path == CONTROL:
            self._send(200, self._control(json.loads(content)))
            return
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        with lock:
            requests.append(f"{self.command} {unquote(parts.path)}")
            failing = faults["fail"] > 0
            faults["fail"] -= failing
        time.sleep(faults["delay"])
        try:
            if failing:
                raise Refused(503, "ServiceUnavailable")
            self._check_signature(parts.path, parts.query)
            if bucket == DENIED:
                raise Refused(403, "AccessDenied")
            with lock:
                if bucket not in buckets:
                    raise Refused(404, "NoSuchBucket")
                self._serve(buckets[bucket], bucket, key, query, self._decoded(content))
        except Refused as refused:
            text = f"<Error><Code>{refused.code}</Code><Message>{refused.code}</Message></Error>"
            self._send(refused.status, text.encode())

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

    def _control(self, asked: dict[str, object]) -> bytes:
        with lock:
            if "bucket" in asked:
                buckets.setdefault(str(asked["bucket"]), {})
            faults.update({name: asked[name] for name in faults if name in asked})  # type: ignore[misc]
            return json.dumps({"requests": requests, "uploads": len(uploads)}).encode()

    def _serve(self, objects: dict[str, tuple[bytes, float]], bucket: str, key: str, query: dict, body: bytes) -> None:
        if self.command in ("GET", "HEAD") and not key:
            self._send(200, b"" if self.command == "HEAD" else _listing(objects, query))
        elif self.command in ("GET", "HEAD"):
            if key not in objects:
                raise Refused(404, "NoSuchKey")
            self._send_object(*objects[key])
        elif self.command == "PUT" and "uploadId" in query:
            uploads[query["uploadId"]][int(query["partNumber"])] = body
            self._send(200, b"", {"ETag": _etag(body)})
        elif self.command == "PUT":
            source = self.headers.get("x-amz-copy-source")
            if source:
                _, _, name = unquote(source).lstrip("/").partition("/")
                if name not in objects:
                    raise Refused(404, "NoSuchKey")
                body = objects[name][0]
            objects[key] = body, time.time()
            text = f"<CopyObjectResult><ETag>{_etag(body)}</ETag></CopyObjectResult>".encode() if source else b""
            self._send(200, text, {"ETag": _etag(body)})
        elif self.command == "POST" and "uploads" in query:
            identity = os.urandom(8).hex()
            uploads[identity] = {}
            tags = f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><UploadId>{identity}</UploadId>"
            text = f"<InitiateMultipartUploadResult>{tags}</InitiateMultipartUploadResult>"
            self._send(200, text.encode())
        elif self.command == "POST" and "uploadId" in query:
            parts = uploads.pop(query["uploadId"])
            objects[key] = b"".join(parts[number] for number in sorted(parts)), time.time()
            tags = f"<Key>{escape(key)}</Key><ETag>{_etag(objects[key][0])}</ETag>"
            text = f"<CompleteMultipartUploadResult>{tags}</CompleteMultipartUploadResult>"
            self._send(200, text.encode())
        elif self.command == "POST" and "delete" in query:
            names = [_plain(name) for name in re.findall(r"<Key>(.*?)</Key>", body.decode())]
            for name in names:
                objects.pop(name, None)
            gone = "".join(f"<Deleted><Key>{escape(name)}</Key></Deleted>" for name in names)
            self._send(200, f"<DeleteResult>{gone}</DeleteResult>".encode())
        elif self.command == "DELETE":
            uploads.pop(query.get("uploadId", ""), None)
            if "uploadId" not in query:
                objects.pop(key, None)
            self._send(204, b"")
        else:
            raise Refused(501, "NotImplemented")

    def _send_object(self, content: bytes, changed: float) -> None:
        headers = {"ETag": _etag(content), "Last-Modified": formatdate(changed, usegmt=True), "Accept-Ranges": "bytes"}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found is None:
            self._send(200, content, headers)
            return
        first, last = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
        if first >= len(content):
            raise Refused(416, "InvalidRange")
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _decoded(self, content: bytes) -> bytes:
        """Returns a body that was sent in chunks, each with its length before it, as one."""
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return content
        whole, rest = b"", content
        while rest:
            head, _, rest = rest.partition(b"\r\n")
            size = int(head.partition(b";")[0] or b"0", 16)
            if size == 0:
                break
            whole, rest = whole + rest[:size], rest[size + 2 :]
        return whole

    def _check_signature(self, path: str, query: str) -> None:
        """Checks an AWS Signature Version 4, as Amazon documents it."""
        found = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d+)/([^/]+)/s3/aws4_request, ?SignedHeaders=([^,]+), ?"
            r"Signature=([0-9a-f]+)",
            self.headers.get("Authorization", ""),
        )
        if found is None:
            raise Refused(403, "AccessDenied")
        if found[1] != KEY:
            raise Refused(403, "InvalidAccessKeyId")
        day, region = found[2], found[3]
        pairs = sorted(parse_qsl(query, keep_blank_values=True))
        headers = [f"{name}:{' '.join(self.headers.get(name, '').split())}\n" for name in found[4].split(";")]
        canonical = "\n".join(
            [
                self.command,
                quote(unquote(path), safe="/-_.~"),
                "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in pairs),
                "".join(headers),
                found[4],
                self.headers.get("x-amz-content-sha256", ""),
            ]
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        scope = f"{day}/{region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{self.headers.get('x-amz-date')}\n{scope}\n{digest}"
        key = f"AWS4{SECRET}".encode()
        for part in (day, region, "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        if not hmac.compare_digest(hmac.new(key, text.encode(), hashlib.sha256).hexdigest(), found[5]):
            raise Refused(403, "SignatureDoesNotMatch")


def _listing(objects: dict[str, tuple[bytes, float]], query: dict[str, str]) -> bytes:
    """ListObjectsV2, in pages."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("continuation-token", query.get("start-after", ""))
    limit = int(query.get("max-keys", 1000))
    rows: list[tuple[str, str]] = []
    folders: set[str] = set()
    for key in sorted(objects):
        if not key.startswith(prefix) or key <= after:
            continue
        head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        if found:
            folder = prefix + head + delimiter
            if folder not in folders and folder > after:
                folders.add(folder)
                rows.append((key, f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"))
            continue
        content, changed = objects[key]
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(changed)) + f".{int(changed * 1000) % 1000:03d}Z"
        tags = f"<Key>{escape(key)}</Key><LastModified>{when}</LastModified><ETag>{_etag(content)}</ETag>"
        rows.append((key, f"<Contents>{tags}<Size>{len(content)}</Size></Contents>"))
    more = len(rows) > limit
    rows = rows[:limit]
    token = f"<NextContinuationToken>{escape(rows[-1][0])}</NextContinuationToken>" if more else ""
    head = f"<KeyCount>{len(rows)}</KeyCount><IsTruncated>{'true' if more else 'false'}</IsTruncated>{token}"
    return f"<ListBucketResult>{head}{''.join(row for _, row in rows)}</ListBucketResult>".encode()


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def _plain(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)  # noqa: T201
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()  # ends with its parent
    server.serve_forever()
