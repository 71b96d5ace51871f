"""Database servers for a test: Debian's, on a socket in a folder of their own, stopped afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.object_store import store, store_server

__all__ = ["mysql_url", "postgresql", "postgresql_url", "store", "store_server"]

PASSWORD = "s3cr:t/w%rd"  # noqa: S105
SECONDS = 60


@dataclass
class PostgreSql:
    """A server of our own.

    Attributes:
        programs: Folder of initdb and pg_ctl.
        folder: Its data and socket.
        user: Whom it runs as, if not us: it refuses to run as root.
    """

    programs: Path
    folder: Path
    user: str | None
    url: str = field(init=False)

    def __post_init__(self) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        if self.user:
            shutil.chown(self.folder, self.user)
            shutil.chown(password, self.user)
        who = ("--username=cdn", f"--pwfile={password}", "--auth=scram-sha-256")
        self._run("initdb", "--no-sync", *who, "-D", str(self.folder / "data"))
        self.url = f"postgresql://cdn:{quote(PASSWORD, safe='')}@/postgres?host={quote(str(self.folder))}"

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c fsync=off"
        log = self.folder / "log"
        self._run("pg_ctl", "-w", "-D", str(self.folder / "data"), "-l", str(log), "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """``immediate`` is a crash."""
        self._run("pg_ctl", "-w", "-D", str(self.folder / "data"), "-m", mode, "stop", check=False)

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        prefix = ["runuser", "-u", self.user, "--"] if self.user else []
        command = [*prefix, str(self.programs / program), *arguments]
        subprocess.run(command, check=check, timeout=SECONDS, cwd="/", stdout=subprocess.DEVNULL)


@pytest.fixture
def postgresql() -> Iterator[PostgreSql]:
    """A running PostgreSQL server; skipped where there is none installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("PostgreSQL is not installed")
    # Not tmp_path: other users cannot enter it, and the path of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="cdn-pg-"))
    try:
        server = PostgreSql(programs[-1].parent, folder, "postgres" if os.getuid() == 0 else None)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql_url(postgresql: PostgreSql) -> str:
    """The storage URL of a running PostgreSQL server, with a password of awkward characters."""
    return postgresql.url


@pytest.fixture
def mysql_url() -> Iterator[str]:
    """The storage URL of a running MariaDB server, with a password of awkward characters; skipped without one."""
    programs = {name: shutil.which(name) for name in ("mariadb-install-db", "mariadbd", "mariadb")}
    if not all(programs.values()):
        pytest.skip("MariaDB is not installed")
    folder = Path(tempfile.mkdtemp(prefix="cdn-my-"))  # as for PostgreSQL
    socket = folder / "socket"
    options = ["--no-defaults", f"--datadir={folder / 'data'}"]
    try:
        if os.getuid() == 0:
            shutil.chown(folder, "mysql")
            options.append("--user=mysql")  # not `runuser`: the process that we stop is then the server
        make = [str(programs["mariadb-install-db"]), *options]
        subprocess.run(make, check=True, timeout=SECONDS, cwd="/", stdout=subprocess.DEVNULL)
        serve = [str(programs["mariadbd"]), *options, "--skip-networking", f"--socket={socket}"]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(serve, cwd="/", stdout=log, stderr=log)
        try:
            admin = [str(programs["mariadb"]), "--no-defaults", f"--socket={socket}"]  # as who we are: `unix_socket`
            until = time.monotonic() + SECONDS
            while subprocess.run([*admin, "-e", "select 1"], check=False, capture_output=True).returncode:
                if time.monotonic() > until or server.poll() is not None:
                    pytest.fail((folder / "log").read_text())
                time.sleep(0.2)
            prepare = f"create database study; create user cdn@localhost identified by '{PASSWORD}'"
            prepare += "; grant all on study.* to cdn@localhost"
            subprocess.run([*admin, "-e", prepare], check=True, timeout=SECONDS)
            yield f"mysql://cdn:{quote(PASSWORD, safe='')}@localhost/study?unix_socket={quote(str(socket))}"
        finally:
            server.kill()
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
