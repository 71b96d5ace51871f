"""A run's folder on an object store: whole files under names, through pyarrow's file systems."""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from cdn_tune.errors import RunError
from cdn_tune.training.runs.files import write_atomic

PATIENCE_SECONDS = 120.0  # how long a store that was reached before may be away
COPIED_BYTES = 5 << 30  # S3 copies no larger object in one request
_CONNECT_SECONDS, _REQUEST_SECONDS, _ATTEMPTS = 5.0, 30.0, 3
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_BLOCK = 8 << 20
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AZURE_CLIENT_SECRET")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a store."""

    cause: str
    remedy: str
    passing: bool = False  # whether it may go away by itself


_NO_BUCKET = Trouble("there is no such bucket", "create it, or correct --run")
# Causes by the error messages of the AWS SDK, of Google's and of Azure's; the first that matches counts.
_TROUBLES = {
    r"NO_?SUCH_?BUCKET|bucket does not exist|container ?not ?found|ContainerBeingDeleted": _NO_BUCKET,
    r"INVALID_?ACCESS_?KEY|INVALID_?CLIENT_?TOKEN|SIGNATURE_?DOES_?NOT_?MATCH|EXPIRED_?TOKEN|INVALID_?TOKEN|"
    r"UNAUTHENTICATED|Authentication ?Failed|UNRECOGNIZED_?CLIENT|MISSING_?AUTH|HTTP status 401|"
    r"could not.*credential": Trouble(
        "the store knows no such credentials",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (gs: GOOGLE_APPLICATION_CREDENTIALS, abfs: AZURE_CLIENT_ID "
        "and the like), or give this machine a role",
    ),
    r"ACCESS_?DENIED|PERMISSION_?DENIED|Authorization ?(Failure|Permission)|HTTP status 403|Forbidden": Trouble(
        "access is denied", "let this user or role list, read, write and delete objects there, or set other credentials"
    ),
    r"HTTP status 301|PERMANENT_?REDIRECT|AuthorizationHeaderMalformed|region.*is wrong": Trouble(
        "the bucket is in another region", "name its region with AWS_REGION, or ?region=REGION in the URL"
    ),
    r"NETWORK_CONNECTION|curlCode|could(n't| not) (connect|resolve)|time(d )?[- ]?out|REQUEST_TIMEOUT|UNAVAILABLE|"
    r"SLOW_?DOWN|THROTTL|INTERNAL_(FAILURE|ERROR)|HTTP status (429|5\d\d)|DEADLINE|"
    r"connection (reset|refused|closed)|Transport|retry policy exhausted": Trouble(
        "the store does not answer",
        "check the network, and the endpoint (AWS_ENDPOINT_URL, or ?endpoint_override=HOST:PORT in the URL)",
        passing=True,
    ),
}


def trouble_of(error: BaseException) -> Trouble:
    """Returns the cause and the remedy of an error of pyarrow's file systems."""
    text = " ".join(str(error).split())
    for pattern, trouble in _TROUBLES.items():
        if re.search(pattern, text, re.IGNORECASE):
            return trouble
    for name in _SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return Trouble(text[:200] or type(error).__name__, "mend that, or choose another --run")


@dataclass(frozen=True)
class Entry:
    """An object's version, as the store reports it."""

    size: int  # bytes
    changed: int  # when it was written, by the store's clock, in seconds: compared for equality, never for order


class ObjectStore:
    """A run's folder on an object store.

    An object appears whole under its name or not at all: stores promise that, and sizes are compared after an upload.
    Credentials come from the environment, the user's files or the machine's role, as the store's own tools take them.
    Passing errors (the network, an overloaded store) are retried for a while; others are raised as `RunError`.

    Args:
        url: As `working_copy.url_of` returns it.
        patience: Seconds for which passing errors are retried.
    """

    def __init__(self, url: str, patience: float = PATIENCE_SECONDS) -> None:
        self.url, self.patience = url, patience
        self.shown = url.partition("?")[0]
        self.closed: str | None = None  # why this process may write there no more
        try:
            self._files, self._root = _open(url)
        except Exception as error:  # every store has errors of its own
            raise self._error("", trouble_of(error)) from None

    def check(self) -> None:
        """Does nothing if the store can be used; passing errors are not retried.

        Raises:
            RunError: If the store is away, has no such bucket, or denies access.
        """
        from pyarrow.fs import FileType

        patience, self.patience = self.patience, 0.0
        try:
            if not self.entries(deep=False):  # a missing bucket lists as empty, too
                bucket = self._root.partition("/")[0]
                found = self._retry("", lambda: self._files.get_file_info(bucket))
                if found.type == FileType.NotFound:
                    raise self._error("", _NO_BUCKET)
        finally:
            self.patience = patience

    def read(self, name: str) -> bytes | None:
        """Returns a small object's content; None if there is no such object."""

        def read() -> bytes | None:
            try:
                with self._files.open_input_stream(self._path(name)) as stream:
                    content: bytes = stream.readall()
                    return content
            except FileNotFoundError:
                return None

        return self._retry(name, read)

    def write(self, name: str, content: bytes) -> None:
        """Writes a small object."""

        def write() -> None:
            with self._files.open_output_stream(self._path(name), compression=None) as stream:
                stream.write(content)

        self._write(name, write)

    def upload(self, path: Path, name: str) -> Entry:
        """Uploads a file whole; the file may be replaced meanwhile, not written to."""

        def upload() -> Entry:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                with self._files.open_output_stream(self._path(name), compression=None) as stream:
                    shutil.copyfileobj(file, stream, _BLOCK)
            found = self._entry(name)
            if found is None or found.size != size:
                raise ConnectionError(f"timed out: {size} bytes were sent, {found.size if found else 0} arrived")
            return found

        return self._write(name, upload)

    def download(self, name: str, path: Path) -> bool:
        """Downloads an object into a file that is whole or absent; returns whether there is such an object."""

        def download() -> bool:
            try:
                stream = self._files.open_input_stream(self._path(name), compression=None)
            except FileNotFoundError:
                return False
            failed: list[Exception] = []  # the store's errors, as against the disk's

            def copy(file: Any) -> None:
                while True:
                    try:
                        block: bytes = stream.read(_BLOCK)
                    except Exception as error:
                        failed.append(error)
                        raise OSError(str(error)) from error
                    if not block:
                        return
                    file.write(block)

            with stream:
                try:
                    write_atomic(path, copy)
                except RunError:
                    if failed:
                        raise failed[0] from None
                    raise
            return True

        return self._retry(name, download)

    def entry(self, name: str) -> Entry | None:
        """Returns an object's version; None if there is no such object."""
        return self._retry(name, lambda: self._entry(name))

    def entries(self, folder: str = "", deep: bool = True) -> dict[str, Entry]:
        """Returns the objects under a folder by name; those of its sub-folders, too, if `deep`."""
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self._path(folder), allow_not_found=True, recursive=deep)
        found = self._retry(folder, lambda: self._files.get_file_info(selector))
        return {info.path[len(self._root) + 1 :]: _entry_of(info) for info in found if info.type == FileType.File}

    def folders(self) -> list[str]:
        """Returns the names of the folders in this one, sorted."""
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self._root, allow_not_found=True)
        found = self._retry("", lambda: self._files.get_file_info(selector))
        return sorted(info.base_name for info in found if info.type == FileType.Directory)

    def copy(self, name: str, target: str) -> None:
        """Copies an object of at most `COPIED_BYTES` within the store."""
        self._write(name, lambda: self._files.copy_file(self._path(name), self._path(target)))

    def delete(self, name: str) -> None:
        """Deletes an object, if there is one."""
        self._delete(name, self._files.delete_file)

    def delete_folder(self, name: str) -> None:
        """Deletes everything under a folder, if there is anything."""
        self._delete(name, self._files.delete_dir)

    def file_system(self, name: str) -> tuple[Any, str]:
        """Returns pyarrow's file system and the path of a folder in it, for libraries that write by themselves."""
        return self._files, self._path(name)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _entry(self, name: str) -> Entry | None:
        from pyarrow.fs import FileType

        found = self._files.get_file_info(self._path(name))
        return _entry_of(found) if found.type == FileType.File else None

    def _delete(self, name: str, operation: Callable[[str], None]) -> None:
        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                operation(self._path(name))

        self._write(name, delete)

    def _write(self, name: str, operation: Callable[[], Value]) -> Value:
        if self.closed is not None:
            raise RunError(f"{self.shown}: {self.closed}")
        return self._retry(name, operation)

    def _retry(self, name: str, operation: Callable[[], Value]) -> Value:
        deadline, pause = time.monotonic() + self.patience, _FIRST_PAUSE
        while True:
            try:
                return operation()
            except RunError:
                raise
            except Exception as error:  # every store has errors of its own
                trouble = trouble_of(error)
                if not trouble.passing or time.monotonic() + pause > deadline:
                    raise self._error(name, trouble) from None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _error(self, name: str, trouble: Trouble) -> RunError:
        return RunError(f"{self.shown}{'/' if name else ''}{name}: {trouble.cause}; {trouble.remedy}")


@lru_cache(maxsize=32)
def open_store(url: str) -> ObjectStore:
    """Opens a run's folder on an object store, once in a process."""
    return ObjectStore(url)


def _entry_of(info: Any) -> Entry:
    return Entry(info.size, (info.mtime_ns or 0) // 10**9)  # listings have parts of seconds, single requests do not


def _open(url: str) -> tuple[Any, str]:
    """Returns a store's file system, with short timeouts, and the run's path in it."""
    from pyarrow import fs

    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme != "s3":
        if parts.scheme in ("gs", "gcs"):
            query.setdefault("retry_limit_seconds", f"{_REQUEST_SECONDS:g}")
        files, path = fs.FileSystem.from_uri(parts._replace(query=urlencode(query)).geturl())
        return files, path.rstrip("/")
    endpoint = query.get("endpoint_override")
    region = query.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint else fs.resolve_s3_region(parts.netloc)
    files = fs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        scheme=query.get("scheme"),
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        allow_delayed_open=True,  # small files in one request
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )
    return files, f"{parts.netloc}{parts.path}".rstrip("/")
