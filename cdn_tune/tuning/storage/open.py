"""Opens the storage of a study: a sqlite file, a database server, a journal file or memory."""

import os
from pathlib import Path

from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from cdn_tune.config.secrets import without_secrets
from cdn_tune.errors import ConfigError, RunError
from cdn_tune.tuning.storage.check import ANOTHER, DRIVERS, KINDS, MEMORY, UnusableStudy, one_line
from cdn_tune.tuning.storage.journal import RunJournal, is_journal
from cdn_tune.tuning.storage.reporting import ReportingStorage


def open_storage(url: str, sole_writer: bool = False) -> BaseStorage:
    """Opens the storage of a study, creating it where it does not exist.

    Args:
        url: ``sqlite:///PATH`` (four slashes before an absolute path), ``postgresql://…``, ``mysql://…``,
            ``journal:///PATH``, or ``memory``. Special characters of a password are percent-encoded.
        sole_writer: Whether no other process writes to a journal, as to that of a run folder which this one holds: it
            is then written a decision at a time, and what a killed writer left of one is cut off.

    Returns:
        The storage. A database server that goes away meanwhile is waited for, up to `reconnect.PATIENCE_SECONDS`.

    Raises:
        ConfigError: If the URL is wrong, or its driver is not installed.
        RunError: If the file or database is another Optuna version's, or not writable; `UnusableStudy` if it is
            damaged or no study.
        ClusterError: If the server cannot be reached or refuses the user.
    """
    if url == MEMORY:
        return InMemoryStorage()
    scheme, separator, rest = url.partition("://")
    kind = scheme.partition("+")[0]
    if not separator or kind not in {"sqlite", "journal", *DRIVERS}:
        raise ConfigError(f"storage {without_secrets(url)}: no such kind; write {KINDS}")
    if kind in DRIVERS:
        from cdn_tune.tuning.storage.database import open_server

        return open_server(url, kind)
    path = Path(rest.removeprefix("/").partition("?")[0])
    if not rest.startswith("/") or not path.name or ":memory:" in rest:
        raise ConfigError(f"storage {url}: names no file; write {scheme}:///PATH (an absolute PATH makes four slashes)")
    _check_folder(url, path)
    if kind == "journal":
        return _open_journal(url, path, sole_writer)
    from cdn_tune.tuning.storage.database import open_sqlite

    return open_sqlite(url, path)


def _open_journal(url: str, path: Path, sole_writer: bool) -> BaseStorage:
    try:
        if sole_writer:
            return RunJournal(path)
        _cut_torn(path)
        return ReportingStorage(JournalStorage(JournalFileBackend(str(path))), url)
    except Exception as error:  # whatever Optuna meets in a damaged file
        raise UnusableStudy(f"storage {url}: {path} is no journal of a study ({one_line(error)})", ANOTHER) from None


def _cut_torn(path: Path) -> None:
    """Cuts off the part of a line that a killed writer or a full disk has left: the next line would be appended to it.

    Raises:
        ValueError: If the file is no journal; it is left as it is.
    """
    if not path.exists() or path.read_bytes()[-1:] in (b"", b"\n"):
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        content = path.read_bytes()
        if not is_journal(content):
            raise ValueError("its first line is no log")
        os.truncate(path, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _check_folder(url: str, path: Path) -> None:
    folder = path.parent
    if path.is_dir():
        raise RunError(f"storage {url}: {path} is a folder; name a file")
    if not folder.is_dir():
        raise RunError(f"storage {url}: there is no folder {folder}; create it, or name another file")
    for place, what in ((folder, "folder"), (path, "file")):  # files beside it: a database's journal, a journal's lock
        if place.exists() and not os.access(place, os.W_OK):
            raise RunError(f"storage {url}: the {what} {place} is not writable; make it so, or name another file")
