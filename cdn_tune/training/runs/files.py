"""Files that are whole or absent: written aside, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from cdn_tune.data.files import sync_folder
from cdn_tune.errors import RunError

_FULL = 64 << 20  # below so many free bytes a failed write is put down to the disk


def write_atomic(path: Path, write: Callable[[IO[bytes]], object], previous: Path | None = None) -> None:
    """Writes a file so that a reader sees the old one or the new one, never a part.

    Args:
        path: Final name; its folder is created.
        write: Called with the open temporary file.
        previous: New name of the old file, in the same folder; a reader may find the old one there alone.

    Raises:
        RunError: If the file cannot be written (folder not writable, disk full).
    """
    temporary = _beside(path)
    try:
        with told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_flushed(temporary, write)
            if previous is not None and path.exists():
                path.replace(previous)
            temporary.replace(path)
            sync_folder(path.parent)
    except RunError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_new(path: Path, content: bytes) -> None:
    """Writes a file that is whole from the first moment on, and leaves one that is there already.

    Also one that another process makes at the same moment, where the file system has hard links.

    Args:
        path: Its name; an empty file of that name counts as none, and is replaced.
        content: All of it.

    Raises:
        RunError: If the file cannot be written (folder not writable, disk full).
    """
    if path.exists() and not path.stat().st_size:
        write_atomic(path, lambda file: file.write(content))
        return
    temporary = _beside(path)
    try:
        with told(path):
            _write_flushed(temporary, lambda file: file.write(content))
            try:
                os.link(temporary, path)
            except FileExistsError:
                return
            except OSError:  # a file system without hard links
                if not path.exists():
                    temporary.rename(path)
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _write_flushed(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    path.unlink(missing_ok=True)  # never written into: a killed process's may be another name of what it made
    with path.open("xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
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


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically, indented, keys in their order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
