"""Studies in databases: opened for a search, or read without writing to them.

Imported by those that need it alone, since SQLAlchemy takes longer to import than a journal takes to read.
"""

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from cdn_tune.config.secrets import PASSWORD, without_secrets
from cdn_tune.errors import CdnTuneError, ClusterError, ConfigError, RunError
from cdn_tune.training.runs.files import write_new
from cdn_tune.tuning.storage.check import ANOTHER, CONNECT_SECONDS, KINDS, SQLITE, UnusableStudy, one_line, storage_url
from cdn_tune.tuning.storage.reconnect import ReconnectingStorage
from cdn_tune.tuning.storage.reporting import ReportingStorage
from cdn_tune.tuning.storage.sqlite import check_tables, connect_read_only, copy_database

_BUSY_SECONDS = 60  # that a sqlite file may be locked by another process
_REFUSED = ("password authentication failed", "no password supplied", "access denied", "role", "1045")
Value = TypeVar("Value")


def open_sqlite(url: str, path: Path) -> BaseStorage:
    """Opens a SQLite file, creating it where it does not exist; see `open_storage`."""
    try:
        if path.exists() and path.stat().st_size:
            # Not read-only: what a killed process was writing is rolled back by whoever opens the file next.
            uri = f"file:{path.absolute()}?mode=rw".replace("#", "%23")
            with closing(sqlite3.connect(uri, uri=True)) as connection:
                tables = check_tables(connection)
            if tables and "studies" not in tables:
                raise UnusableStudy(f"storage {url}: {path} is a database, but holds no Optuna study", ANOTHER)
        else:
            write_new(path, _empty_sqlite())
        return ReportingStorage(
            RDBStorage(url, engine_kwargs={"connect_args": {"timeout": _BUSY_SECONDS}}), url, SQLAlchemyError
        )
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


def open_server(url: str, kind: str) -> BaseStorage:
    """Opens the storage on a database server; see `open_storage`."""
    try:
        options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": CONNECT_SECONDS}}
        shown = without_secrets(url)
        opened = ReconnectingStorage(RDBStorage(storage_url(url), engine_kwargs=options), shown)
        return ReportingStorage(opened, shown, SQLAlchemyError)
    except ImportError:
        raise ConfigError(
            f"storage {without_secrets(url)}: its driver is not installed; pip install 'cdn-tune[{kind}]'"
        ) from None
    except (ArgumentError, NoSuchModuleError, KeyError, ValueError, IndexError) as error:
        raise ConfigError(
            f"storage {without_secrets(url)}: cannot be understood ({_clean(error, url)}); write {KINDS}, special "
            "characters of the password percent-encoded"
        ) from None
    except (SQLAlchemyError, RuntimeError) as error:
        raise _opening_error(url, error, "its database cannot be used") from None


def read_sqlite(path: Path, load: Callable[[BaseStorage], Value]) -> Value:
    """Returns what `load` reads of the storage in a SQLite file, which may be a stranger's."""
    try:
        return _load_sqlite(path, load)
    except (DBAPIError, StorageInternalError):  # the next reader must roll back what a killed driver has left
        with tempfile.TemporaryDirectory(prefix="cdn-tune-") as folder:
            return _load_sqlite(copy_database(path, Path(folder)), load)


def read_server(url: str, load: Callable[[BaseStorage], Value]) -> Value:
    """Returns what `load` reads of the storage on a database server."""
    with _opened(storage_url(url), {"connect_args": {"connect_timeout": CONNECT_SECONDS}}) as storage:
        return load(storage)


def _load_sqlite(path: Path, load: Callable[[BaseStorage], Value]) -> Value:
    with _opened(SQLITE, {"creator": partial(connect_read_only, path)}) as storage:
        return load(storage)


@contextmanager
def _opened(url: str, engine: dict[str, Any]) -> Iterator[BaseStorage]:
    storage = RDBStorage(url, engine, skip_compatibility_check=True, skip_table_creation=True)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


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
        return UnusableStudy(f"storage {shown}: {otherwise} ({reason})", ANOTHER)
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
