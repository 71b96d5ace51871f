"""A run's home on an object store: whole files under names, through pyarrow's file systems."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from cdn_tune.errors import RunError
from cdn_tune.training.object_store.errors import NO_BUCKET, Trouble, trouble_of
from cdn_tune.training.runs.files import write_atomic

PATIENCE_SECONDS = 120.0  # how long a store that was there may be away
COPIED_BYTES = 5 << 30  # S3 copies no larger object in one request
_CONNECT_SECONDS, _REQUEST_SECONDS, _ATTEMPTS = 5.0, 30.0, 3
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_BLOCK = 8 << 20

Value = TypeVar("Value")


@dataclass(frozen=True)
class Entry:
    """An object, as the store tells it.

    Attributes:
        size: Bytes.
        changed: When it was written, in seconds of the store's own clock: compared for equality, never for order.
    """

    size: int
    changed: int


class Home:
    """A folder of an object store.

    An object appears whole under its name or not at all: stores promise that, and sizes are compared after an upload.
    Credentials come from the environment, the user's files or the machine's role, as the store's own tools take them.
    What may pass (the network, an overloaded store) is tried again for a while.

    Args:
        url: As `working_copy.url_of` returns it.
        patience: Seconds for which it is tried again.
    """

    def __init__(self, url: str, patience: float = PATIENCE_SECONDS) -> None:
        self.url, self.patience = url, patience
        self.shown = url.partition("?")[0]
        self.closed: str | None = None  # why this process may write there no more
        try:
            self._files, self._root = _open(url)
        except Exception as error:  # every store has errors of its own
            raise self._told("", trouble_of(error)) from None

    def check(self) -> None:
        """Refuses a home that cannot be used, without the patience of later.

        Raises:
            RunError: If the store is away, knows no such bucket, or refuses.
        """
        from pyarrow.fs import FileType

        patience, self.patience = self.patience, 0.0
        try:
            if not self.entries(deep=False):  # of a missing bucket there is nothing, either
                bucket = self._root.partition("/")[0]
                found = self._patiently("", lambda: self._files.get_file_info(bucket))
                if found.type == FileType.NotFound:
                    raise self._told("", NO_BUCKET)
        finally:
            self.patience = patience

    def read(self, name: str) -> bytes | None:
        """Returns a small object's content; None if there is none."""

        def read() -> bytes | None:
            try:
                with self._files.open_input_stream(self._path(name)) as stream:
                    content: bytes = stream.readall()
                    return content
            except FileNotFoundError:
                return None

        return self._patiently(name, read)

    def write(self, name: str, content: bytes) -> None:
        """Writes a small object."""

        def write() -> None:
            with self._files.open_output_stream(self._path(name), compression=None) as stream:
                stream.write(content)

        self._write(name, write)

    def upload(self, path: Path, name: str) -> Entry:
        """Uploads a file whole; the file may be replaced meanwhile, not written to.

        Raises:
            RunError: If the store cannot take it.
        """

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
        """Downloads an object into a file that is whole or absent; returns whether there is such an object.

        Raises:
            RunError: If the store cannot give it, or the file cannot be written.
        """

        def download() -> bool:
            try:
                stream = self._files.open_input_stream(self._path(name), compression=None)
            except FileNotFoundError:
                return False
            failed: list[Exception] = []

            def copy(file: Any) -> None:
                while block := _read(stream, failed):
                    file.write(block)
                if failed:
                    raise OSError(str(failed[0]))

            with stream:
                try:
                    write_atomic(path, copy)
                except RunError:
                    if failed:  # the store's failure, not the disk's
                        raise failed[0] from None
                    raise
            return True

        return self._patiently(name, download)

    def entry(self, name: str) -> Entry | None:
        """Returns what the store tells of an object; None if there is none."""
        return self._patiently(name, lambda: self._entry(name))

    def entries(self, folder: str = "", deep: bool = True) -> dict[str, Entry]:
        """Returns the objects under a folder by name; those of its sub-folders, too, if `deep`."""
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self._path(folder), allow_not_found=True, recursive=deep)
        found = self._patiently(folder, lambda: self._files.get_file_info(selector))
        return {info.path[len(self._root) + 1 :]: _entry_of(info) for info in found if info.type == FileType.File}

    def copy(self, name: str, target: str) -> None:
        """Copies an object within the store; one of at most `COPIED_BYTES`."""
        self._write(name, lambda: self._files.copy_file(self._path(name), self._path(target)))

    def delete(self, name: str) -> None:
        """Deletes an object, if there is one."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._files.delete_file(self._path(name))

        self._write(name, delete)

    def delete_folder(self, name: str) -> None:
        """Deletes everything under a folder, if there is anything."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._files.delete_dir(self._path(name))

        self._write(name, delete)

    def file_system(self, name: str) -> tuple[Any, str]:
        """Returns pyarrow's file system and the path of a folder in it, for those who write by themselves."""
        return self._files, self._path(name)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _entry(self, name: str) -> Entry | None:
        from pyarrow.fs import FileType

        found = self._files.get_file_info(self._path(name))
        return _entry_of(found) if found.type == FileType.File else None

    def _write(self, name: str, operation: Callable[[], Value]) -> Value:
        if self.closed is not None:
            raise RunError(f"{self.shown}: {self.closed}")
        return self._patiently(name, operation)

    def _patiently(self, name: str, operation: Callable[[], Value]) -> Value:
        deadline, pause = time.monotonic() + self.patience, _FIRST_PAUSE
        while True:
            try:
                return operation()
            except RunError:
                raise
            except Exception as error:  # every store has errors of its own
                trouble = trouble_of(error)
                if not trouble.passing or time.monotonic() + pause > deadline:
                    raise self._told(name, trouble) from None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _told(self, name: str, trouble: Trouble) -> RunError:
        return RunError(f"{self.shown}{'/' if name else ''}{name}: {trouble.cause}; {trouble.remedy}")


@lru_cache(maxsize=32)
def open_home(url: str) -> Home:
    """Opens a home; a process opens each once."""
    return Home(url)


def _entry_of(info: Any) -> Entry:
    return Entry(info.size, (info.mtime_ns or 0) // 10**9)  # a listing tells parts of seconds, a look at one does not


def _read(stream: Any, failed: list[Exception]) -> bytes:
    try:
        block: bytes = stream.read(_BLOCK)
    except Exception as error:  # told apart from what the disk says
        failed.append(error)
        return b""
    return block


def _open(url: str) -> tuple[Any, str]:
    """Opens a store so that nothing waits for minutes; returns its file system and the home's path in it."""
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
