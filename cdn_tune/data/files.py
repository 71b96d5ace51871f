"""Files: read text, find a file, digest it, write it in one step; helpers of long jobs."""

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from cdn_tune.errors import DataError

Progress = Callable[[int, int], None]  # called with (items done, items)

SAMPLE_BYTES = 1 << 20
SAMPLES = 16
_DEEPEST = 100  # that values of a JSON text may be nested: shown, copied and checked, they need as much stack
_ASIDE = ".tmp"
_SCRATCH, _SCRATCH_LOCK = "cdn-tune-", ".alive"


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


def parse_json(text: str | bytes) -> Any:
    """Returns the value of a JSON text, which may be a stranger's.

    Raises:
        ValueError: If it is none (a `json.JSONDecodeError`), or holds a number too long or values nested too deeply.
    """
    with suppress(RecursionError):
        value = json.loads(text)
        level = [value]
        for _ in range(_DEEPEST + 1):
            if not level:
                return value
            level = [each for held in level if isinstance(held, dict | list) for each in _within(held)]
    raise ValueError(f"values are nested more than {_DEEPEST} deep")


def _within(held: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return held.values() if isinstance(held, dict) else held


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file (see `parse_json`).

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no UTF-8, or no JSON.
    """
    return parse_json(path.read_text(encoding="utf-8"))


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


def remote_file(url: str, key: str | None = None) -> Path:
    """Returns the file at a URL, read through fsspec, as a path; `key` is the configuration key that names it, if any.

    Raises:
        DataError: If it does not exist, or the protocol's package or access rights are missing.
    """
    from upath import UPath

    where = f"{key}={url}" if key else url
    try:
        path = UPath(url)
        found = path.fs.info(path.path)["type"] == "file"  # is_file() takes what is denied for absent
    except FileNotFoundError:
        found = False
    except Exception as error:  # every store has errors of its own
        raise DataError(f"{where}: cannot be reached ({brief(error)}); mend that") from None
    if not found:
        raise DataError(f"{where}: no such file there; correct {key or 'the URL'}")
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
def writing_to(out: Path, busy: str, remedy: str = "mend that") -> Iterator[None]:
    """Raises what goes wrong with a file that one process at a time writes as a `DataError`.

    Args:
        out: The file.
        busy: What another process does that holds its lock, and what to do then.
        remedy: What to do where it cannot be written, before the same command is run again.
    """
    try:
        yield
    except Timeout:
        raise DataError(f"{out}: another process {busy}") from None
    except OSError as error:
        fault = error.strerror or brief(error)
        raise DataError(f"{out}: cannot be written ({fault}); {remedy} and run the same command again") from None


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced to disk and renamed to `path`, else removed.

    A killed process leaves at most the temporary file, never a partial file under the final name.
    """
    with aside(path) as partial:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yields a name beside `path`, for a file or folder that is renamed to `path` once it is whole.

    What has that name in the end is deleted, and what killed processes left under such names of `path` before. One
    process at a time may write to `path`, unless all who do are on this machine.
    """
    clear_left(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_ASIDE}")
    _delete(temporary)  # a killed process had this one's number
    try:
        yield temporary
    finally:
        _delete(temporary)


def clear_left(folder: Path, name: str | None = None) -> None:
    """Deletes from a folder what `aside` made for `name`, or for any name, in processes of this machine that are dead.

    Nobody on another machine may write there meanwhile.
    """
    for path in folder.glob(f".{'*' if name is None else glob.escape(name)}.*{_ASIDE}"):
        number = path.name.removesuffix(_ASIDE).rpartition(".")[2]
        if number.isdecimal() and not _is_alive(int(number)):
            _delete(path)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yields an empty folder for temporary files, which goes in the end; those that killed processes left go, too.

    A lock in it shows that its process lives, also to processes of another container.
    """
    parent = Path(tempfile.gettempdir())
    for lock in parent.glob(f"{_SCRATCH}*/{_SCRATCH_LOCK}"):
        with suppress(OSError, Timeout), FileLock(lock, timeout=0):  # another user's cannot be opened
            _delete(lock.parent)
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
    try:
        with FileLock(folder / _SCRATCH_LOCK):
            (folder / "files").mkdir()
            yield folder / "files"
    finally:
        _delete(folder)


def _is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _delete(path: Path) -> None:
    """Deletes a file or a folder, as far as it can."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to disk, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
