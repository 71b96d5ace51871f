"""The cache folder: its path and size limit, the entries in use, and the eviction of others when it is full."""

import fcntl
import os
import re
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from cdn_tune.errors import DataError

CACHE = "CDN_TUNE_CACHE"
LIMIT = "CDN_TUNE_CACHE_LIMIT"
DEFAULT_LIMIT = 100 << 30
IN_USE = "in-use"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def user_cache() -> Path:
    """Returns the user's cache folder: CDN_TUNE_CACHE, else `cdn-tune` under XDG_CACHE_HOME or ``~/.cache``."""
    if own := os.environ.get(CACHE):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdn-tune"


def cache_limit() -> int:
    """Returns how many bytes of clips may be cached: CDN_TUNE_CACHE_LIMIT (``500M``, ``64G``), else 100 GiB.

    Raises:
        DataError: If the variable is no size.
    """
    text = os.environ.get(LIMIT, "").strip()
    if not text:
        return DEFAULT_LIMIT
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", text.upper())
    if match is None:
        raise DataError(f"{LIMIT}={text}: not a size; write bytes with K, M, G or T after them, for example 64G")
    return int(float(match[1]) * _UNITS[match[2]])


class Hold:
    """Keeps an entry of the cache from eviction, and marks it as used now, until it is released or the process ends.

    An entry is a folder, created if absent. Each holder has a shared lock on its `in-use` file; a reader without the
    right to write may hold it, too.

    Raises:
        OSError: If it is absent and cannot be created.
    """

    def __init__(self, entry: Path) -> None:
        path = entry / IN_USE
        while True:
            entry.mkdir(parents=True, exist_ok=True)
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except PermissionError:
                file = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue  # evicted between the two lines
            except OSError:  # a read-only file system
                file = os.open(path, os.O_RDONLY)
            self._close = weakref.finalize(self, os.close, file)
            fcntl.flock(file, fcntl.LOCK_SH)
            if _is_same(file, path):
                break
            self.release()  # evicted while we waited
        with suppress(OSError):
            os.utime(path)

    def release(self) -> None:
        """Releases the entry; a no-op where that was done."""
        self._close()


def make_room(root: Path, needed: int, limit: int) -> bool:
    """Returns whether `needed` bytes more keep to `limit`, after the least recently used free entries are evicted.

    Raises:
        OSError: If the folder cannot be written to.
    """
    if needed > limit:
        return False
    with FileLock(root / ".evicting.lock"):
        sizes = {entry: size_of(entry) for entry in root.iterdir() if entry.is_dir()}
        total = sum(sizes.values()) + needed
        for entry in sorted(sizes, key=_last_use):
            if total <= limit:
                break
            if evict(entry):
                total -= sizes[entry]
        return total <= limit


def evict(entry: Path) -> bool:
    """Returns whether an entry could be removed, or was; one that is held stays."""
    try:
        file = os.open(entry / IN_USE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return not entry.exists()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        grave = Path(tempfile.mkdtemp(prefix=".evicted-", dir=entry.parent))
        entry.replace(grave / entry.name)  # in one step, so that no reader finds half of it
        shutil.rmtree(grave, ignore_errors=True)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def size_of(entry: Path) -> int:
    """Returns the bytes that the files of a folder take, those that vanish meanwhile left out."""
    total = 0
    for folder, _, names in os.walk(entry):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def _last_use(entry: Path) -> float:
    try:
        return (entry / IN_USE).stat().st_mtime
    except OSError:
        return 0.0


def _is_same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False
