"""Files: read text, find a file, digest it, write it in one step; helpers of long jobs."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from upath import UPath

from cdn_tune.errors import DataError

Progress = Callable[[int, int], None]  # called with (items done, items)

SAMPLE_BYTES = 1 << 20
SAMPLES = 16


def brief(error: BaseException, longest: int = 160) -> str:
    """Returns an error's message as the beginning of one line."""
    return " ".join(str(error).split())[:longest]


def available_cpus() -> int:
    """Returns how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_text(path: Path, remedy: str = "check data.root") -> str:
    """Returns the text of a UTF-8 file, without a byte-order mark, with every line end as a line feed.

    `remedy`, what to do when the file is missing, ends the error message.

    Raises:
        DataError: If the file is missing, unreadable, not UTF-8, or has nothing but white space.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file; {remedy}") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty; download or copy it again")
    return text


def locate(root: Path, name: str) -> Path:
    """Returns `name` as a path of its own when it is absolute or exists as given, else as a path inside `root`."""
    path = Path(name).expanduser()
    if path.is_absolute():
        return path
    inside = root / path
    return path if path.exists() and not inside.exists() else inside


def is_remote(path: Path | str) -> bool:
    """Returns whether a path is a URL of an object store or the like, such as ``s3://bucket/features.hdf5``."""
    return "://" in str(path)  # a local path has no two slashes in a row


def remote_file(url: str, key: str) -> Path:
    """Returns the file at a URL, read through fsspec, as a path; `key` is the configuration key that names it.

    Raises:
        DataError: If it does not exist, or the protocol's package or access rights are missing.
    """
    try:
        path = UPath(url)
        found = path.is_file()
    except Exception as error:  # every store has errors of its own
        raise DataError(f"{key}={url}: cannot be reached ({brief(error)}); mend that") from None
    if not found:
        raise DataError(f"{key}={url}: no such file there; correct {key}")
    return cast(Path, path)


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(SAMPLE_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sampled_sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's size and of evenly spread parts of it.

    At most 16 MiB are read, so it takes milliseconds on a file of any size; a file of up to 16 MiB is read whole.
    It differs after a replacement, a truncation or a rewrite, not after a changed byte between the parts.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    last = max(size - SAMPLE_BYTES, 0)
    with path.open("rb") as file:
        if size <= SAMPLES * SAMPLE_BYTES:
            while block := file.read(SAMPLE_BYTES):
                digest.update(block)
        else:
            for part in range(SAMPLES):
                file.seek(last * part // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced to disk and renamed to `path`, else removed.

    A killed process leaves at most the temporary file, never a partial file under the final name.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to disk, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
