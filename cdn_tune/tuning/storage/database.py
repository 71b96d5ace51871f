"""Reads a study from a database without writing to it.

Apart from its callers, since SQLAlchemy takes longer to import than a journal takes to read.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import DBAPIError

from cdn_tune.tuning.storage.check import CONNECT_SECONDS, SQLITE, storage_url
from cdn_tune.tuning.storage.sqlite import connect_read_only, copy_database

Value = TypeVar("Value")


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
