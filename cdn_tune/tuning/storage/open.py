"""Opens the storage of a study: a sqlite file, a database server, a journal file or memory."""

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from cdn_tune.errors import CdnTuneError, ClusterError, ConfigError, RunError
from cdn_tune.training.runs.files import write_new
from cdn_tune.training.runs.run_folder import PASSWORD, without_secrets
from cdn_tune.tuning.storage.check import CONNECT_SECONDS, DRIVERS, MEMORY, UnusableStudy, one_line, storage_url
from cdn_tune.tuning.storage.journal import RunJournal, is_journal
from cdn_tune.tuning.storage.reconnect import ReconnectingStorage
from cdn_tune.tuning.storage.reporting import ReportingStorage
from cdn_tune.tuning.storage.sqlite import check_tables

_KINDS = "sqlite:///PATH, postgresql://USER@HOST/DATABASE, mysql://USER@HOST/DATABASE or journal:///PATH"
_ANOTHER = "name another file"
_BUSY_SECONDS = 60  # that a sqlite file may be locked by another process
_REFUSED = ("password authentication failed", "no password supplied", "access denied", "role", "1045")


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
        raise ConfigError(f"storage {without_secrets(url)}: no such kind; write {_KINDS}")
    if kind in DRIVERS:
        return _open_server(url, kind)
    path = Path(rest.removeprefix("/").partition("?")[0])
    if not rest.startswith("/") or not path.name or ":memory:" in rest:
        raise ConfigError(f"storage {url}: names no file; write {scheme}:///PATH (an absolute PATH makes four slashes)")
    _check_folder(url, path)
    return _open_journal(url, path, sole_writer) if kind == "journal" else _open_sqlite(url, path)


def _open_sqlite(url: str, path: Path) -> BaseStorage:
    try:
        if path.exists() and path.stat().st_size:
            # Not read-only: what a killed process was writing is rolled back by whoever opens the file next.
            uri = f"file:{path.absolute()}?mode=rw".replace("#", "%23")
            with closing(sqlite3.connect(uri, uri=True)) as connection:
                tables = check_tables(connection)
            if tables and "studies" not in tables:
                raise UnusableStudy(f"storage {url}: {path} is a database, but holds no Optuna study", _ANOTHER)
        else:
            write_new(path, _empty_sqlite())
        return ReportingStorage(RDBStorage(url, engine_kwargs={"connect_args": {"timeout": _BUSY_SECONDS}}), url)
    except (sqlite3.Error, SQLAlchemyError, RuntimeError, OSError, ValueError) as error:
        raise _opening_error(url, error, f"{path} cannot be used as a study") from None


def _empty_sqlite() -> bytes:
    """Returns the file of a storage without studies.

    Made elsewhere: a process killed while it makes tables leaves some without indexes, which are never made later.
    """
    with tempfile.TemporaryDirectory(prefix="cdn-tune-") as folder:
        path = Path(folder) / "study.db"
        RDBStorage(f"sqlite:///{path}").engine.dispose()
        return path.read_bytes()


def _open_journal(url: str, path: Path, sole_writer: bool) -> BaseStorage:
    try:
        if sole_writer:
            return RunJournal(path)
        _cut_torn(path)
        return ReportingStorage(JournalStorage(JournalFileBackend(str(path))), url)
    except Exception as error:  # whatever Optuna meets in a damaged file
        raise UnusableStudy(f"storage {url}: {path} is no journal of a study ({one_line(error)})", _ANOTHER) from None


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


def _open_server(url: str, kind: str) -> BaseStorage:
    try:
        options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": CONNECT_SECONDS}}
        shown = without_secrets(url)
        opened = ReconnectingStorage(RDBStorage(storage_url(url), engine_kwargs=options), shown)
        return ReportingStorage(opened, shown)
    except ImportError:
        raise ConfigError(
            f"storage {without_secrets(url)}: its driver is not installed; pip install 'cdn-tune[{kind}]'"
        ) from None
    except (ArgumentError, NoSuchModuleError, KeyError, ValueError, IndexError) as error:
        raise ConfigError(
            f"storage {without_secrets(url)}: cannot be understood ({_clean(error, url)}); write {_KINDS}, special "
            "characters of the password percent-encoded"
        ) from None
    except (SQLAlchemyError, RuntimeError) as error:
        raise _opening_error(url, error, "its database cannot be used") from None


def _check_folder(url: str, path: Path) -> None:
    folder = path.parent
    if path.is_dir():
        raise RunError(f"storage {url}: {path} is a folder; name a file")
    if not folder.is_dir():
        raise RunError(f"storage {url}: there is no folder {folder}; create it, or name another file")
    for place, what in ((folder, "folder"), (path, "file")):  # files beside it: a database's journal, a journal's lock
        if place.exists() and not os.access(place, os.W_OK):
            raise RunError(f"storage {url}: the {what} {place} is not writable; make it so, or name another file")


def _opening_error(url: str, error: BaseException, otherwise: str) -> CdnTuneError:
    """Returns the error for a failure at opening."""
    shown, reason = without_secrets(url), _clean(error, url)
    cause = error.__cause__ if isinstance(error.__cause__, DBAPIError) else error
    text = str(cause).lower()
    if "no longer compatible with the table schema" in " ".join(text.split()):
        return RunError(
            f"storage {shown}: was made by another Optuna version; run `optuna storage upgrade --storage URL`, or name "
            "another storage"
        )
    if not isinstance(cause, DBAPIError) or url.startswith("sqlite"):
        return UnusableStudy(f"storage {shown}: {otherwise} ({reason})", _ANOTHER)
    if any(word in text for word in _REFUSED):
        return ClusterError(f"storage {shown}: the server refuses the user ({reason}); check user and password")
    if "does not exist" in text or "unknown database" in text:
        return ClusterError(f"storage {shown}: {otherwise} ({reason}); create it")
    return ClusterError(f"storage {shown}: cannot be reached ({reason}); is the server running?")


def _clean(error: BaseException, url: str) -> str:
    """Returns an error's line without the URL's password, however it is written there."""
    line = one_line(error)
    found = PASSWORD.match(url)
    for secret in {found[2], unquote(found[2])} if found and found[2] else ():
        line = line.replace(secret, "***")
    return line
