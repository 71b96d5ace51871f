"""What a job runs to send a run folder to `fetch`: files as text lines of its log. It is copied to the cluster alone.

It needs nothing but Python, reads files as bytes, and writes none. Its last act is to empty its own log, so that
nothing of the run is left on the head node.

A line is ``@cdn-tune KIND VALUE``. Kinds: ``run`` (the manifest and what is to come), ``file`` (a file begins: its
path, size, and how much of it is there already), ``data`` (base64), ``end`` (the file's SHA-256), ``link`` (a file that
is another one's second name), ``done`` (whether more is to come in another job), ``fault`` (why nothing can be sent).
"""

import base64
import contextlib
import fnmatch
import hashlib
import json
import os
import signal
import sqlite3
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO
from urllib.parse import quote

MARK = "@cdn-tune"
REQUEST = "request.json"
_PIECE = 384 << 10
_LINGER_SECONDS = 600
_SQLITE = b"SQLite format 3\0"
_BESIDE = ("-journal", "-wal", "-shm")  # of a sqlite file


def write_line(kind: str, value: object) -> None:
    """Writes a line."""
    print(MARK, kind, value if isinstance(value, str) else json.dumps(value), flush=kind != "data")  # noqa: T201


def send(run: Path, have: dict[str, tuple[int, str]], skip: list[str], limit: int) -> None:
    """Sends what the receiver lacks of a run folder.

    Args:
        run: The run folder.
        have: Bytes that the receiver has of a file, from its start, and their SHA-256, by relative path.
        skip: Patterns of relative paths that are left out.
        limit: Bytes after which another job goes on.
    """
    files = listing(run, skip)
    total = sum(path.stat().st_size for path in files.values())
    write_line("run", {"manifest": (run / "manifest.json").read_text("utf-8"), "bytes": total, "files": len(files)})
    first_names: dict[tuple[int, int], str] = {}
    with tempfile.TemporaryDirectory(prefix="cdn-tune-") as folder:
        for name, path in files.items():
            if limit <= 0:
                write_line("done", {"more": True})
                return
            try:
                status = path.stat()
                first = first_names.setdefault((status.st_dev, status.st_ino), name)
                if first != name:
                    write_line("link", {"path": name, "to": first})
                    continue
                source = snapshot(path, Path(folder))
                most = limit if source == path else source.stat().st_size  # another copy might be another
                with source.open("rb") as file:
                    limit -= _send_file(name, file, have.get(name), most)
            except FileNotFoundError:
                continue  # it has been replaced or deleted since it was listed
    write_line("done", {"more": limit <= 0})


def listing(run: Path, skip: list[str]) -> dict[str, Path]:
    """Returns the files to send by relative path, without links that lead out of the folder."""
    inside = run.resolve()
    paths = [path for path in sorted(run.rglob("*")) if path.is_file() and inside in path.resolve().parents]
    names = {path.relative_to(run).as_posix(): path for path in paths}
    found = {name: path for name, path in names.items() if not any(fnmatch.fnmatch(name, each) for each in skip)}
    for name in [name for name, path in found.items() if can_snapshot(path)]:
        for ending in _BESIDE:
            found.pop(name + ending, None)
    return found


def can_snapshot(path: Path) -> bool:
    """Returns whether a file is a sqlite database that can be read; one whose writer was killed in mid-write cannot."""
    with path.open("rb") as file:
        if file.read(len(_SQLITE)) != _SQLITE:
            return False
    try:
        with contextlib.closing(_connect(path, 10)) as connection:
            connection.execute("select count(*) from sqlite_master").fetchone()
    except sqlite3.Error:
        return False
    return True


def _connect(path: Path, seconds: float) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=seconds)


def snapshot(path: Path, folder: Path) -> Path:
    """Returns a file to read in a file's place: of a database that may be written to meanwhile, a consistent copy."""
    if not can_snapshot(path):
        return path
    copy = folder / "copy.db"
    copy.unlink(missing_ok=True)
    with contextlib.closing(_connect(path, 60)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def _send_file(name: str, file: BinaryIO, had: tuple[int, str] | None, limit: int) -> int:
    """Sends the rest of a file, or all of it if the receiver's part is of another; returns the bytes sent.

    A file that is too large for this job is sent as far as it goes; the next job goes on after that.
    """
    size = os.fstat(file.fileno()).st_size
    digest, offset = hashlib.sha256(), 0
    if had is not None and had[0] <= size:
        offset = feed(digest, file, had[0])
        if digest.hexdigest() != had[1]:
            digest, offset = hashlib.sha256(), 0
            file.seek(0)
    count, sent = min(size - offset, limit), 0
    write_line("file", {"path": name, "size": size, "offset": offset})
    while sent < count and (piece := file.read(min(_PIECE, count - sent))):
        digest.update(piece)
        write_line("data", base64.b64encode(piece).decode())
        sent += len(piece)
    write_line("end", digest.hexdigest())
    return sent


def feed(digest: Any, file: BinaryIO, count: int) -> int:
    """Updates a digest with so many bytes of a file, or its rest; returns how many were read."""
    read = 0
    while read < count and (piece := file.read(min(_PIECE, count - read))):
        digest.update(piece)
        read += len(piece)
    return read


def empty_log(_number: int = 0, _frame: FrameType | None = None) -> None:
    """Empties the file that standard output goes to, and leaves."""
    with contextlib.suppress(OSError):  # it goes to no file
        os.ftruncate(sys.stdout.fileno(), 0)
    os._exit(0)


def main() -> None:
    """Sends what the request in the file beside this one names, then waits for the receiver to send SIGTERM."""
    signal.signal(signal.SIGTERM, empty_log)
    request = json.loads(Path(__file__).with_name(REQUEST).read_text("utf-8"))
    run = Path(request["run"])
    try:
        if not (run / "manifest.json").is_file():
            write_line("fault", "is not a run folder" if run.is_dir() else "no such folder")
        else:
            have = {name: (int(part[0]), str(part[1])) for name, part in request["have"].items()}
            send(run, have, request["skip"], int(request["limit"]))
    except OSError as error:
        write_line("fault", f"{error.filename or run}: {error.strerror}")
    sys.stdout.flush()
    # Not a sleep: a signal that comes just before it begins would be seen only once it ends.
    awaited = {signal.SIGTERM, signal.SIGALRM}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    signal.alarm(_LINGER_SECONDS)
    signal.sigwait(awaited)
    empty_log()


if __name__ == "__main__":
    main()
