"""Storage URLs, and whether the storage behind one can be reached and may be used where it is.

A journal may lie on a network file system: it is appended to by one process, which needs no lock on the file but that
of the run folder, and what a broken connection tears off at its end is cut off. SQLite locks and rewrites parts.

SQLAlchemy is imported where it is used: it takes longer than a journal takes to read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from cdn_tune.errors import ConfigError, RunError
from cdn_tune.training.object_store.working_copy import place_of

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

JOURNAL, SQLITE, MEMORY = "journal:///", "sqlite:///", "memory"
CONNECT_SECONDS = 10
KINDS = "sqlite:///PATH, postgresql://USER@HOST/DATABASE, mysql://USER@HOST/DATABASE or journal:///PATH"
ANOTHER = "name another file"  # the remedy for a study's file that is unusable
DRIVERS = {"postgresql": "psycopg2", "mysql": "pymysql"}  # Python modules, each installed by the extra of that name
_NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p", "orangefs", "pvfs")
_FUSED = ("sshfs", "s3fs", "gcsfuse", "goofys", "blobfuse", "juicefs", "glusterfs", "ceph", "rclone", "mountpoint-s3")
_MOUNTS = Path("/proc/mounts")


def storage_url(url: str) -> str:
    """Returns a storage URL with the driver that this package's extras install.

    SQLAlchemy's own choice depends on its version: ``postgresql://`` means psycopg2 in some and psycopg 3 in others.
    """
    scheme, separator, rest = url.partition("://")
    return f"{scheme}+{DRIVERS[scheme]}{separator}{rest}" if scheme in DRIVERS else url


def one_line(error: BaseException) -> str:
    """Returns a database's own error in one short line, without SQLAlchemy's links and statements."""
    original = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
    return " ".join(str(original).partition("\n[SQL")[0].partition("(Background on")[0].split())[:200]


class UnusableStudy(RunError):  # noqa: N818
    """The file or the database of a study is damaged, or holds something else; see its remedy.

    Args:
        fault: What is wrong, with the storage's URL.
        remedy: For a study that has not begun.
    """

    def __init__(self, fault: str, remedy: str) -> None:
        super().__init__(fault, remedy)
        self.fault, self.remedy = fault, remedy

    def __str__(self) -> str:
        return f"{self.fault}; {self.remedy}"


def check_storage(url: str, nodes: int = 1) -> list[str]:
    """Refuses a storage that cannot hold the study of a search on so many machines; returns warnings, writes nothing.

    Raises:
        ConfigError: If the URL is of another kind, or its driver is not installed.
        RunError: If no server answers, the file cannot be written, or SQLite would lie on a network file system
            that several machines use.
    """
    if url.startswith(JOURNAL):
        _check_file(Path(url.removeprefix(JOURNAL)), url)
        return []
    if url == MEMORY:
        return ["--storage memory: the study is lost with the process, and cannot be taken up again"]
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        parsed = make_url(storage_url(url))
    except SQLAlchemyError:
        parsed = None
    if parsed is None or parsed.get_backend_name() not in ("sqlite", *DRIVERS):
        known = "sqlite:///FILE, journal:///FILE, postgresql://USER@HOST/NAME or mysql://USER@HOST/NAME"
        raise ConfigError(f"--storage {url.partition('://')[0]}://: not known; use {known}")
    if parsed.get_backend_name() == "sqlite":
        return _check_sqlite(parsed, nodes)
    _check_server(parsed)
    return []


def check_shared(run: Path, storage: str) -> None:
    """Refuses a study in a file or in memory for a run on an object store: it would stay on this machine.

    Raises:
        ConfigError: With the remedy.
    """
    place = place_of(run)
    if place is not None and not storage.startswith(("postgresql", "mysql")):
        raise ConfigError(
            f"--run {place.store.shown}: its study must be on a server that every machine reaches, not in a file or in "
            "memory; add --storage postgresql://USER@HOST/NAME (or mysql://...)"
        )


def file_system(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """Returns the type of the file system that a path lies on, or would lie on, such as ``ext4``; None if unknown."""
    try:
        lines = [line.split() for line in mounts.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    where = existing(path).resolve()
    found: tuple[int, str] | None = None
    for _, point, kind, *_ in lines:
        mounted = Path(point.encode().decode("unicode_escape"))
        if (where == mounted or mounted in where.parents) and (found is None or len(mounted.parts) >= found[0]):
            found = len(mounted.parts), kind
    return found[1] if found else None


def is_networked(kind: str | None) -> bool:
    """Whether a file system of this type is reached over a network."""
    if kind is None:
        return False
    name = kind.removeprefix("fuse.")
    return name.startswith(_NETWORK) or name in _FUSED


def existing(path: Path) -> Path:
    """Returns the path, or the nearest folder above it that exists."""
    return next((each for each in (path, *path.absolute().parents) if each.exists()), Path("/"))


def _check_sqlite(url: URL, nodes: int) -> list[str]:
    if not url.database or url.database == ":memory:":
        raise ConfigError(
            "--storage sqlite://: a study in memory is lost with the process; name a file, sqlite:///FILE"
        )
    file = Path(url.database)
    _check_file(file, f"sqlite:///{file}")
    if file.exists():
        try:
            uri = f"file:{file.absolute()}?mode=rw"
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=CONNECT_SECONDS)) as connection:
                connection.execute("PRAGMA schema_version").fetchone()
        except sqlite3.Error as error:
            raise RunError(f"--storage sqlite:///{file}: cannot be read ({error}); name another file") from None
    kind = file_system(file)
    if not is_networked(kind):
        return []
    fault = f"{file}: SQLite on a network file system ({kind})"
    remedy = "leave --storage out (a new run's journal may lie there), or use --storage postgresql://USER@HOST/NAME"
    if nodes > 1:
        raise RunError(f"{fault} loses or damages what is written from several machines; {remedy}")
    return [f"{fault} may be damaged when connections break; {remedy}"]


def _check_file(file: Path, shown: str) -> None:
    """Refuses a file that cannot be written, without touching it."""
    if file.is_dir():
        raise RunError(f"--storage {shown}: is a folder; name a file in it")
    nearest = existing(file)
    if not nearest.is_dir() and nearest != file:
        raise RunError(f"--storage {shown}: {nearest} is no folder; name a file elsewhere")
    if not os.access(nearest, os.W_OK):
        raise RunError(f"--storage {shown}: {nearest} cannot be written; mend its permissions or name a file elsewhere")


def _check_server(url: URL) -> None:
    backend, _, module = url.drivername.partition("+")
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"--storage {backend}://: needs the Python module {module}; pip install 'cdn-tune[{backend}]'"
        )
    import sqlalchemy

    shown = url.render_as_string(hide_password=True)
    options = {"connect_timeout": CONNECT_SECONDS} if module in ("psycopg2", "psycopg", "pymysql", "MySQLdb") else {}
    try:
        engine = sqlalchemy.create_engine(url, connect_args=options, poolclass=sqlalchemy.pool.NullPool)
        engine.connect().close()
    except (sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        answer = f"does not answer ({one_line(error)}); is the server up, and the name right?"
        raise RunError(f"--storage {shown}: {answer}") from None
