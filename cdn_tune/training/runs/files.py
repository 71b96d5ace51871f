"""Files that are whole or absent: written aside, flushed to disk, then renamed."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from cdn_tune.data.files import aside, sync_folder
from cdn_tune.errors import RunError

_FULL = 64 << 20  # below so many free bytes a failed write is put down to the disk


def write_atomic(path: Path, write: Callable[[IO[bytes]], object], previous: Path | None = None) -> None:
    """Writes a file so that a reader sees the old one or the new one, never a part.

    Args:
        path: Final name; its folder is created.
        write: Called with the open temporary file.
        previous: New name of the old file, in the same folder; a reader may find the old one there alone.

    Raises:
        RunError: If the file cannot be written (folder not writable, disk full, a device of that name).
    """
    with write_errors(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise RunError(f"{path}: is a device or a pipe, which would be replaced; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _written(path, write) as temporary:
            if previous is not None and path.exists():
                path.replace(previous)
            temporary.replace(path)


def write_new(path: Path, content: bytes) -> None:
    """Writes a file that is whole from the first moment on, and leaves one that exists.

    Also one that another process makes at the same moment, where the file system has hard links.

    Args:
        path: Its name; an empty file of that name counts as none, and is replaced.
        content: All of it.

    Raises:
        RunError: If the file cannot be written (folder not writable, disk full).
    """
    if path.exists() and not path.stat().st_size:
        write_bytes(path, content)
        return
    with write_errors(path), _written(path, partial(_put, content)) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not path.exists():
                temporary.rename(path)


def write_together(files: Mapping[Path, str]) -> None:
    """Writes UTF-8 text files that belong together: all are on disk before the first takes its name.

    Raises:
        RunError: If one cannot be written (folder not writable, disk full); then all are as they were.
    """
    with contextlib.ExitStack() as stack:
        whole = {}
        for path, text in files.items():
            stack.enter_context(write_errors(path))
            whole[path] = stack.enter_context(_written(path, partial(_put, text.encode())))
        for path, temporary in whole.items():
            temporary.replace(path)


def _put(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


@contextlib.contextmanager
def _written(path: Path, write: Callable[[IO[bytes]], object]) -> Iterator[Path]:
    """Yields a file beside `path` that is on disk; it is deleted in the end, unless the block has renamed it."""
    with aside(path) as temporary:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        sync_folder(path.parent)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns a failed write into one line that names the file or folder.

    Raises:
        RunError: If the block fails to write (folder not writable, disk full).
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        full = path.parent.is_dir() and shutil.disk_usage(path.parent).free < _FULL
        reason = "the disk is full" if full else getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise RunError(f"{path}: cannot be written ({reason}); free space, or choose another place") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically."""
    write_atomic(path, partial(_put, content))


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically, indented, keys in their order."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Returns a value as the text of a JSON file, indented, keys in their order."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
