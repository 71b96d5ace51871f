"""SQLite files, which may be a stranger's: only plain tables are read, within limits of time, rows and size.

A view, a trigger, a virtual table or a computed column is a program that runs when a table is read or written, without
end if it is a recursive one.
"""

import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

_SECONDS = 60.0  # of one connection
_STEPS = 100_000  # of SQLite's machine, between two looks at the clock
_ROWS = 5_000_000
_BYTES = 64 << 20  # of one value
_PARTS = ("", "-journal", "-wal", "-shm")  # of a database that a killed process left
_SEVERAL = bytes.fromhex("d9d505f920a163d7")  # ends a journal that names another file, which SQLite would then delete


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Returns a guarded connection that reads a file and writes nothing.

    Raises:
        ValueError: If the file holds anything but plain tables, or too much.
        sqlite3.Error: If it is damaged, or what a killed process was writing has to be rolled back first.
    """
    connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, check_same_thread=False)
    try:
        until = time.monotonic() + _SECONDS
        connection.set_progress_handler(lambda: time.monotonic() > until, _STEPS)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _BYTES)
        connection.execute("pragma trusted_schema = off")
        connection.execute("pragma cell_size_check = on")
        tables = check_tables(connection)
        rows = sum(connection.execute(f"select count(*) from {_quoted(name)}").fetchone()[0] for name in tables)  # noqa: S608
        if rows > _ROWS:
            raise ValueError(f"it has {rows} rows, and no more than {_ROWS} are read")
    except BaseException:
        connection.close()
        raise
    return connection


def check_tables(connection: sqlite3.Connection) -> set[str]:
    """Returns the names of a file's tables.

    Raises:
        ValueError: If it holds anything but plain tables and their indexes.
    """
    held = connection.execute("select type, name, rootpage from sqlite_master").fetchall()
    for kind, name, page in held:
        if kind not in ("table", "index") or not page:
            raise ValueError(f"it holds a {kind if page or kind != 'table' else 'virtual table'} named {name}")
    tables = {str(name) for kind, name, _ in held if kind == "table"}
    for name in tables:
        if any(hidden for (hidden,) in connection.execute("select hidden from pragma_table_xinfo(?)", [name])):
            raise ValueError(f"it holds a computed column, in table {name}")
    return tables


def copy_database(path: Path, folder: Path) -> Path:
    """Copies a file and what a killed process left beside it, to be rolled back there; returns the copy.

    Raises:
        ValueError: If what was left names further files.
        OSError: If a part cannot be copied.
    """
    for part in _PARTS:
        source = path.with_name(path.name + part)
        if part and not source.exists():
            continue
        copied = Path(shutil.copyfile(source, folder / source.name))
        if part == "-journal" and copied.read_bytes().endswith(_SEVERAL):
            raise ValueError(f"{source.name} belongs to several databases")
    copy = folder / path.name
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("pragma schema_version").fetchone()  # rolls back
    return copy


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
