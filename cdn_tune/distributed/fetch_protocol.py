"""How a run folder travels to `fetch`: lines in the log of a job. Here is what both sides hold to, and the sender.

This file is copied to the cluster alone: it needs nothing but Python.

::

    log      = *noise ( fault | run *( file | link ) done )      a fault may end it anywhere
    file     = begin *data end
    frame    = "@cdn-tune" KIND CONTENT      a line; noise is any other, a warning of Ray's for example

=======  ==============================  =====================================================================
KIND     CONTENT (JSON but for data)     meaning
=======  ==============================  =====================================================================
run      manifest, bytes, files          the run's manifest as text; how much is to come at most, in all jobs
begin    path, size, offset              a file, and how many of its bytes the receiver has already
data     base64                          the next bytes of the file
end      sha256                          of the file up to here, the bytes that were there already included
link     path, to                        a second name of a file that this job has sent
done     more                            whether another job has to go on, since this one has sent its share
fault    reason                          why nothing, or nothing more, can be sent
=======  ==============================  =====================================================================

The receiver trusts nothing of this: `read` gives each frame only where it may stand, and within the limits below.
"""

import base64
import binascii
import contextlib
import fnmatch
import hashlib
import json
import os
import re
import signal
import sqlite3
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any, BinaryIO
from urllib.parse import quote

REQUEST = "request.json"
MANIFEST = "manifest.json"
_MARK = "@cdn-tune "
_PIECE = 384 << 10  # bytes of one data frame
_LINE = 1 << 20  # characters of a line
_TOO_LONG = f"a line of more than {_LINE} characters"
_NOISE = 16 << 20  # characters of noise in one log
_FILES = 1_000_000
_BYTES = 1 << 53
_PATH, _NAME = 1024, 255  # bytes of a path, and of one name in it
_REASON = 500
_DIGEST = re.compile("[0-9a-f]{64}")
_LINGER_SECONDS = 600
_SQLITE = b"SQLite format 3\0"
_BESIDE = ("-journal", "-wal", "-shm")  # of a sqlite file


class ProtocolError(Exception):
    """A line that does not follow the protocol."""


class SenderFault(Exception):  # noqa: N818
    """Why the sender cannot go on, in its words."""


@dataclass(frozen=True)
class Request:
    """What the receiver asks for."""

    run: str  # the run folder, as the head node sees it
    have: dict[str, tuple[int, str]]  # bytes that the receiver has of a file, from its start, and their SHA-256
    skip: tuple[str, ...]  # patterns of paths that are left out
    limit: int  # bytes after which another job goes on

    def skips(self, path: str) -> bool:
        """Returns whether a path is left out."""
        return any(fnmatch.fnmatchcase(path, each) for each in self.skip)

    @classmethod
    def read(cls, path: Path) -> "Request":
        """Returns the request in a file."""
        value = json.loads(path.read_text("utf-8"))
        have = {name: (int(size), str(digest)) for name, (size, digest) in value["have"].items()}
        return cls(str(value["run"]), have, tuple(value["skip"]), int(value["limit"]))

    def write(self, path: Path) -> None:
        """Writes it to a file."""
        path.write_text(json.dumps(asdict(self)), "utf-8")


@dataclass(frozen=True)
class Run:
    """The first frame."""

    manifest: str
    bytes: int
    files: int

    def __post_init__(self) -> None:
        _require(self.files <= _FILES, f"a run of {self.files} files")

    @property
    def most_bytes(self) -> int:
        """What may come of the run: a search that goes on writes while it is sent."""
        return self.bytes + self.bytes // 4 + (64 << 20)


@dataclass(frozen=True)
class Begin:
    """The beginning of a file, or of its rest."""

    path: str
    size: int
    offset: int

    def __post_init__(self) -> None:
        check_path(self.path)
        _require(self.offset <= self.size, f"{self.path}: from byte {self.offset} of {self.size}")


@dataclass(frozen=True)
class Data:
    """Bytes of a file."""

    piece: bytes


@dataclass(frozen=True)
class End:
    """The end of what comes of a file."""

    sha256: str

    def __post_init__(self) -> None:
        _require(_DIGEST.fullmatch(self.sha256) is not None, "an end without its SHA-256")


@dataclass(frozen=True)
class Link:
    """A second name of a file."""

    path: str
    to: str

    def __post_init__(self) -> None:
        check_path(self.path)


@dataclass(frozen=True)
class Done:
    """The last frame."""

    more: bool


@dataclass(frozen=True)
class Fault:
    """The last frame of a sender that cannot go on."""

    reason: str

    def __post_init__(self) -> None:
        _require(len(self.reason) <= _REASON, "a fault of many words")


Frame = Run | Begin | Data | End | Link | Done | Fault
_KINDS: dict[str, type[Frame]] = {kind.__name__.lower(): kind for kind in (Run, Begin, Data, End, Link, Done, Fault)}


def _kind(frame: Frame) -> str:
    return type(frame).__name__.lower()


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ProtocolError(otherwise)


def check_path(path: str) -> None:
    """Raises ProtocolError unless a path stays in its folder, and can be created and printed everywhere."""
    shown = ascii(path[:100])
    plain = PurePosixPath(path)
    stays = not plain.is_absolute() and ".." not in plain.parts and plain.parts and "\\" not in path
    _require(bool(stays), f"{shown}: a path that leads out of the run folder")
    _require(plain.as_posix() == path, f"{shown}: a path that is written in two ways")
    _require(not any(unicodedata.category(each)[0] == "C" for each in path), f"{shown}: a path of control characters")
    sizes = [len(name.encode()) for name in plain.parts]
    _require(len(path.encode()) <= _PATH and max(sizes) <= _NAME, f"{shown}...: a path that is too long")


def line_of(frame: Frame) -> str:
    """Returns a frame as its line, without the line break."""
    content = base64.b64encode(frame.piece).decode() if isinstance(frame, Data) else json.dumps(asdict(frame))
    line = f"{_MARK}{_kind(frame)} {content}"
    _require(len(line) <= _LINE, _TOO_LONG)
    return line


def read(log: Iterable[str], request: Request) -> Iterator[Run | Begin | Data | End | Link | Done]:
    """Yields the frames of a job's log, which comes in any pieces, up to the one that ends it.

    Raises:
        ProtocolError: At the first line that does not follow the protocol, or is not what was requested.
        SenderFault: If the sender cannot go on.
    """
    frames = _frames(log)
    run = next(frames, None)
    if not isinstance(run, Run):
        raise ProtocolError("the log does not begin with the run")
    yield run
    files: set[str] = set()
    folders: set[str] = set()
    announced = sent = 0
    for frame in frames:
        if isinstance(frame, Done):
            _require(not frame.more or sent >= request.limit, "it stops before its share is sent")
            yield frame
            return
        if not isinstance(frame, Begin | Link):
            raise ProtocolError(f"{_kind(frame)} outside of a file")
        above = {str(folder) for folder in PurePosixPath(frame.path).parents}
        _require(not ({frame.path} & (files | folders) or above & files), f"{frame.path}: comes twice")
        _require(not request.skips(frame.path), f"{frame.path}: is not asked for")
        _require(len(files) < run.files, f"more than the {run.files} files that were announced")
        if isinstance(frame, Link):
            _require(frame.to in files, f"{frame.path}: is a second name of what has not come")
            yield frame
        else:
            announced += frame.size
            _require(announced <= run.most_bytes, f"more than the {run.bytes} bytes that were announced")
            had = request.have.get(frame.path, (0, ""))[0]
            _require(frame.offset in (0, had), f"{frame.path}: goes on at byte {frame.offset}, and {had} are here")
            yield frame
            for inner in _body(frames, frame):
                sent += len(inner.piece) if isinstance(inner, Data) else 0
                yield inner
        files.add(frame.path)
        folders |= above
    raise ProtocolError("it ends before all was sent")


def _body(frames: Iterator[Frame], begin: Begin) -> Iterator[Data | End]:
    """Yields the frames of a file after its beginning."""
    left = begin.size - begin.offset
    for frame in frames:
        if isinstance(frame, End):
            yield frame
            return
        if not isinstance(frame, Data):
            raise ProtocolError(f"{begin.path}: {_kind(frame)} before its end")
        left -= len(frame.piece)
        _require(left >= 0, f"{begin.path}: longer than the {begin.size} bytes that were announced")
        yield frame


def _frames(log: Iterable[str]) -> Iterator[Frame]:
    noise = 0
    for line in _lines(log):
        if not line.startswith(_MARK):
            noise += len(line)
            _require(noise <= _NOISE, "too much else in the log")
            continue
        kind, _, content = line.removeprefix(_MARK).partition(" ")
        frame = _frame(kind, content)
        if isinstance(frame, Fault):
            raise SenderFault(frame.reason)
        yield frame


def _frame(kind: str, content: str) -> Frame:
    """Returns a frame of its kind and content."""
    shown = ascii(kind[:20])
    try:
        cls = _KINDS[kind]
        if cls is Data:
            piece = base64.b64decode(content, validate=True)
            _require(0 < len(piece) <= _PIECE, f"{len(piece)} bytes at once")
            return Data(piece)
        value = json.loads(content)
    except KeyError:
        raise ProtocolError(f"{shown} is no frame") from None
    except (ValueError, RecursionError, binascii.Error):
        raise ProtocolError(f"{shown}: its content is damaged") from None
    expected: dict[str, Any] = {field.name: field.type for field in fields(cls)}
    _require(isinstance(value, dict) and value.keys() == expected.keys(), f"{shown}: needs {', '.join(expected)}")
    for name, of in expected.items():
        item = value[name]
        fits = type(item) is of and (of is not int or 0 <= item <= _BYTES)
        _require(fits, f"{shown}: {name} is {ascii(item)[:40]}")
    return cls(**value)


def _lines(log: Iterable[str]) -> Iterator[str]:
    """Yields the whole lines of a text that comes in pieces."""
    rest: list[str] = []  # of the line that has not ended yet
    held = 0
    for text in log:
        *ended, begun = text.split("\n")
        for piece in ended:
            _require(held + len(piece) <= _LINE, _TOO_LONG)
            yield "".join((*rest, piece))
            rest, held = [], 0
        rest.append(begun)
        held += len(begun)
        _require(held <= _LINE, _TOO_LONG)


# The sender.


def main() -> None:
    """Sends what the request in the file beside this one names, then waits for the receiver to send SIGTERM.

    Its last act is to empty its own log, so that nothing of the run is left on the head node.
    """
    signal.signal(signal.SIGTERM, empty_log)
    request = Request.read(Path(__file__).with_name(REQUEST))
    run = Path(request.run)
    try:
        if not (run / MANIFEST).is_file():
            _write(Fault("is not a run folder" if run.is_dir() else "no such folder"))
        else:
            send(run, request)
    except OSError as error:
        _write(Fault(f"{error.filename or run}: {error.strerror}"[-_REASON:]))
    except ProtocolError as error:
        _write(Fault(f"{error}; rename or delete it there"[-_REASON:]))
    sys.stdout.flush()
    # Not a sleep: a signal that comes just before it begins would be seen only once it ends.
    awaited = {signal.SIGTERM, signal.SIGALRM}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    signal.alarm(_LINGER_SECONDS)
    signal.sigwait(awaited)
    empty_log()


def _write(frame: Frame) -> None:
    print(line_of(frame), flush=not isinstance(frame, Data))  # noqa: T201


def send(run: Path, request: Request) -> None:
    """Sends what the receiver lacks of a run folder; reads files as bytes, and writes none."""
    files = listing(run, request)
    total = sum(path.stat().st_size for path in files.values())
    _write(Run((run / MANIFEST).read_text("utf-8"), total, len(files)))
    first_names: dict[tuple[int, int], str] = {}
    limit = request.limit
    with tempfile.TemporaryDirectory(prefix="cdn-tune-") as folder:
        for name, path in files.items():
            if limit <= 0:
                break
            try:
                status = path.stat()
                identity = status.st_dev, status.st_ino
                if identity in first_names:
                    _write(Link(name, first_names[identity]))
                    continue
                source = snapshot(path, Path(folder))
                most = limit if source == path else source.stat().st_size  # another copy might be another
                with source.open("rb") as file:
                    limit -= _send_file(name, file, request.have.get(name), most)
                first_names[identity] = name
            except FileNotFoundError:
                continue  # it has been replaced or deleted since it was listed
    _write(Done(limit <= 0))


def listing(run: Path, request: Request) -> dict[str, Path]:
    """Returns the files to send by relative path, without links that lead out of the folder."""
    inside = run.resolve()
    paths = [path for path in sorted(run.rglob("*")) if path.is_file() and inside in path.resolve().parents]
    names = {path.relative_to(run).as_posix(): path for path in paths}
    found = {name: path for name, path in names.items() if not request.skips(name)}
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
    _write(Begin(name, size, offset))
    while sent < count and (piece := file.read(min(_PIECE, count - sent))):
        digest.update(piece)
        _write(Data(piece))
        sent += len(piece)
    _write(End(digest.hexdigest()))
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


if __name__ == "__main__":
    main()
