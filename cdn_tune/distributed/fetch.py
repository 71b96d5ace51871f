"""Fetches a run folder from a cluster, through a job that prints it: what `fetch_send` writes is read here.

Nothing that arrives is run or unpickled; paths are checked, and files by their SHA-256.
"""

import base64
import binascii
import hashlib
import json
import os
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from filelock import FileLock, Timeout

from cdn_tune.distributed import fetch_send
from cdn_tune.distributed.jobs import Jobs
from cdn_tune.errors import ClusterError, RunError
from cdn_tune.training.runs.files import told, write_json
from cdn_tune.training.runs.run_folder import LOCK, MANIFEST

RECORD = ".fetched.json"  # digests of what was fetched, by path
# What only the search that runs there needs: its lock, unfinished writes, and the states trials go on from.
LEFT_OUT = (LOCK, "*/" + LOCK, ".stop", ".*.tmp", "*/.*.tmp", RECORD)
STATES = ("last.pt", "previous.pt", "*/last.pt", "*/previous.pt")
_JOB_BYTES = 256 << 20  # that one job sends; its log is as large by a third, for a while, on the head node's disk
_JOBS = 10_000
_BEGINNINGS = 5
_STOP_SECONDS = 30.0
_PIECE = 1 << 20

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fetched:
    """The result of fetching.

    Attributes:
        folder: The run folder here.
        files: Files of the run that lie there now as they are on the cluster.
        received: Bytes received over the network.
        changed_here: Files that were left alone because they were changed here.
    """

    folder: Path
    files: int
    received: int
    changed_here: list[str]


@dataclass
class _Received:
    digests: dict[str, str] = field(default_factory=dict)  # of whole files, by path
    links: dict[str, str] = field(default_factory=dict)  # a file's second name to its first
    begun: Counter[str] = field(default_factory=Counter)  # how often a file was sent from its start
    received: int = 0
    more: bool = False


def fetch(jobs: Jobs, run: str, to: Path, *, states: bool, python: str, on_progress: OnProgress) -> Fetched:
    """Fetches a run folder, or what has changed in it since it was fetched last.

    Files arrive in a folder beside `to`, are checked against their SHA-256, and take their place once all are there.
    Fetching that was broken off goes on in the middle of a file.

    Args:
        jobs: The cluster's jobs.
        run: The run folder, as the head node sees it.
        to: The folder here: new, or of the same run.
        states: Whether the states from which trials go on are fetched too.
        python: The Python on the head node.
        on_progress: Called with the bytes that have arrived, and those of the whole run.

    Raises:
        RunError: If there is no such run there, or `to` holds another one.
        ClusterError: If a job fails, or what arrives is damaged.
    """
    to = to.absolute()
    parts = to.parent / f".{to.name}.fetching"
    with told(to):
        parts.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(parts / LOCK, timeout=0):
            found = _receive(jobs, run, to, parts / "files", states, python, on_progress)
            result = settle(to, parts / "files", found.digests, found.links, found.received)
        shutil.rmtree(parts)
    except Timeout:
        raise RunError(f"{to}: another cdn-tune is fetching to it; wait for it") from None
    return result


def _receive(
    jobs: Jobs, run: str, to: Path, parts: Path, states: bool, python: str, on_progress: OnProgress
) -> _Received:
    found = _Received()
    skip = [*LEFT_OUT, *(() if states else STATES)]
    have = {**digests(to), **digests(parts)}
    for _ in range(_JOBS):
        found.more = False
        lines = _lines(jobs, {"run": run, "have": have, "skip": skip, "limit": _JOB_BYTES}, python)
        try:
            _receive_lines(lines, run, to, parts, found, have, on_progress)
        finally:
            lines.close()
        if not found.more:
            break
    for path in [path for path in parts.rglob("*") if path.is_file()]:
        if path.relative_to(parts).as_posix() not in found.digests:
            path.unlink()  # of an earlier attempt, and there no longer
    return found


def _lines(jobs: Jobs, request: dict[str, Any], python: str) -> Generator[tuple[str, str], None, None]:
    """Yields the lines of a job that sends, as (kind, value); once left, the job empties its log and goes."""
    with tempfile.TemporaryDirectory(prefix="cdn-tune-") as folder:
        shutil.copyfile(fetch_send.__file__, Path(folder) / "sender.py")
        (Path(folder) / fetch_send.REQUEST).write_text(json.dumps(request), "utf-8")
        job = jobs.submit(
            f"exec {shlex.quote(python)} sender.py", {"working_dir": folder}, {}, f"fetch {request['run']}"
        )
    rest = ""
    try:
        for text in jobs.follow(job):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                mark, _, rest_ = line.partition(" ")
                if mark == fetch_send.MARK:
                    kind, _, value = rest_.partition(" ")
                    yield kind, value
        ended = jobs.job(job)
        raise ClusterError(f"fetch: job {job} ended before all was sent ({_reason(ended.message)})")
    finally:
        with suppress(ClusterError):
            jobs.stop(job)
            if jobs.wait(job, _STOP_SECONDS).has_ended:
                jobs.forget(job)


def _receive_lines(
    lines: Iterator[tuple[str, str]],
    run: str,
    to: Path,
    parts: Path,
    found: _Received,
    have: dict[str, tuple[int, str]],
    on_progress: OnProgress,
) -> None:
    total = 0
    for kind, value in lines:
        if kind == "fault":
            raise RunError(f"{run}: {value}, as the head node sees it; name the run folder by its path there")
        if kind == "run":
            total = _check(json.loads(value), run, to)
        elif kind == "file":
            about = json.loads(value)
            name, offset = inside(about["path"]), int(about["offset"])
            if offset and offset == about["size"]:
                found.digests[name] = _unchanged(lines, name, have[name][1])
                continue
            have[name] = _receive_file(lines, to, parts, name, offset, found, total, on_progress)
            if have[name][0] == about["size"]:
                found.digests[name] = have[name][1]
        elif kind == "link":
            about = json.loads(value)
            found.links[inside(about["path"])] = inside(about["to"])
        elif kind == "done":
            found.more = bool(json.loads(value)["more"])
            return


def _check(header: dict[str, Any], run: str, to: Path) -> int:
    """Checks that a run may come to a folder; returns its size in bytes."""
    there = json.loads(header["manifest"])
    if not isinstance(there, dict) or "kind" not in there:
        raise RunError(f"{run}: its {MANIFEST} is not a cdn-tune manifest")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        held = to / MANIFEST
        if not held.is_file():
            raise RunError(f"{to}: exists and is no run folder; choose another --to")
        if json.loads(held.read_text("utf-8")) != there:
            raise RunError(f"{to}: holds another run; choose another --to")
    size = int(header["bytes"])
    free = shutil.disk_usage(to.parent).free
    held_bytes = sum(path.stat().st_size for path in to.rglob("*") if path.is_file()) if to.exists() else 0
    if size - held_bytes > free:
        raise RunError(
            f"{to}: the run takes {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free; choose another --to"
        )
    return size


def _receive_file(
    lines: Iterator[tuple[str, str]],
    to: Path,
    parts: Path,
    name: str,
    offset: int,
    found: _Received,
    total: int,
    on_progress: OnProgress,
) -> tuple[int, str]:
    """Writes a file, or its rest; returns size and SHA-256 of what is here now."""
    path = parts / name
    found.begun[name] += not offset
    if found.begun[name] > _BEGINNINGS:
        raise ClusterError(f"fetch: {name}: changes faster than it comes; fetch it when the search has stopped")
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if offset and not path.exists():
            shutil.copyfile(to / name, path)
        digest = hashlib.sha256()
        with path.open("r+b" if offset else "wb") as file:
            for piece in pieces(file, offset):
                digest.update(piece)
            file.truncate(offset)
            file.seek(offset)
            for kind, value in lines:
                if kind == "end":
                    break
                if kind != "data":
                    raise ClusterError(f"fetch: {name}: unexpected {kind!r} in the log; run the same command again")
                piece = _decoded(value, name)
                file.write(piece)
                digest.update(piece)
                found.received += len(piece)
                on_progress(found.received, total)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
    if digest.hexdigest() != value:
        path.unlink()
        raise ClusterError(f"fetch: {name}: arrived damaged; run the same command again")
    return size, digest.hexdigest()


def _unchanged(lines: Iterator[tuple[str, str]], name: str, digest: str) -> str:
    """Returns the SHA-256 of a file that is here already, after reading the end of its lines."""
    if next(lines, ("", "")) != ("end", digest):
        raise ClusterError(f"fetch: {name}: unexpected lines in the log; run the same command again")
    return digest


def _decoded(value: str, name: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise ClusterError(f"fetch: {name}: arrived damaged; run the same command again") from None


def _reason(text: str) -> str:
    return " ".join(text.split())[-200:] or "no reason given"


def settle(to: Path, parts: Path, arrived: Mapping[str, str], links: Mapping[str, str], received: int) -> Fetched:
    """Moves what has arrived to its place: a new folder at once, a file of an older one each at once.

    Files that were changed since they were fetched last, an evaluation made here for example, are left alone.

    Args:
        to: The place.
        parts: Where what has arrived lies; what lies in its place already does not.
        arrived: SHA-256 of files by path.
        links: Files that are other ones' second names, by path.
        received: Bytes received.
    """
    sources = {**{name: name for name in arrived}, **{name: link for name, link in links.items() if link in arrived}}
    with told(to):
        if not to.exists() or not any(to.iterdir()):
            for name, source in sources.items():
                if name != source:
                    _place(parts / source, parts / name)
            write_json(parts / RECORD, {name: arrived[source] for name, source in sources.items()})
            parts.rename(to)
            return Fetched(to, len(sources), received, [])
        record = to / RECORD
        known: dict[str, str] = json.loads(record.read_text("utf-8")) if record.is_file() else {}
        changed_here = []
        for name, source in sources.items():
            held = digest(to / name)[1] if (to / name).is_file() else None
            if held not in (None, arrived[source], known.get(name)):
                changed_here.append(name)
                continue
            if held != arrived[source]:
                _place(parts / source if (parts / source).exists() else to / source, to / name)
            known[name] = arrived[source]
        write_json(record, known)
    return Fetched(to, len(sources) - len(changed_here), received, changed_here)


def _place(source: Path, target: Path) -> None:
    """Gives a file another name, whole or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def inside(name: Any) -> str:
    """Returns a relative path that stays in its folder.

    Raises:
        ClusterError: If it leads out of it, whoever sent it.
    """
    path = PurePosixPath(str(name))
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in str(name) or "\\" in str(name):
        raise ClusterError(f"fetch: a path that leads out of the run folder was sent ({str(name)[:100]!r})")
    return path.as_posix()


def digests(folder: Path) -> dict[str, tuple[int, str]]:
    """Returns size and SHA-256 of a folder's files by path; of none if it does not exist."""
    if not folder.is_dir():
        return {}
    return {
        path.relative_to(folder).as_posix(): digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name not in (LOCK, RECORD)
    }


def digest(path: Path) -> tuple[int, str]:
    """Returns a file's size and SHA-256."""
    found, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        for piece in pieces(file, path.stat().st_size):
            found.update(piece)
            size += len(piece)
    return size, found.hexdigest()


def pieces(file: IO[bytes], count: int) -> Iterator[bytes]:
    """Yields so many bytes of a file, a piece at a time."""
    while count > 0 and (piece := file.read(min(_PIECE, count))):
        count -= len(piece)
        yield piece
