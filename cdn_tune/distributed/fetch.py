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
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from cdn_tune.distributed import fetch_send
from cdn_tune.distributed.jobs import Jobs
from cdn_tune.errors import ClusterError, RunError
from cdn_tune.training.runs.files import write_errors, write_json
from cdn_tune.training.runs.run_folder import LOCK, MANIFEST

RECORD = ".fetched.json"  # digests of what was fetched, by path
# What only the search that runs there needs: its lock, unfinished writes, and the states trials go on from.
LEFT_OUT = (LOCK, "*/" + LOCK, ".stop", ".*.tmp", "*/.*.tmp", RECORD)
STATES = ("last.pt", "previous.pt", "*/last.pt", "*/previous.pt")
_JOB_BYTES = 256 << 20  # that one job sends; its log is as large by a third, for a while, on the head node's disk
_BEGINNINGS = 5  # of one file
_STOP_SECONDS = 30.0

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fetched:
    """The result of fetching."""

    folder: Path
    files: int  # that are here now as they are on the cluster
    received: int  # bytes, over the network
    changed_here: list[str]  # files that were left alone because they were changed here


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
    folder = to.parent / f".{to.name}.fetching"
    with write_errors(to):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            receiver = _Receiver(run, to, folder / "files", on_progress)
            request = {"run": run, "skip": [*LEFT_OUT, *(() if states else STATES)], "limit": _JOB_BYTES}
            more = True
            while more:
                with closing(_lines(jobs, request | {"have": receiver.have}, python)) as lines:
                    more = receiver.receive(lines)
            result = receiver.settle()
        shutil.rmtree(folder)
    except Timeout:
        raise RunError(f"{to}: another cdn-tune is fetching to it; wait for it") from None
    return result


def _lines(jobs: Jobs, request: dict[str, Any], python: str) -> Generator[tuple[str, str], None, None]:
    """Yields the lines of a job that sends, as (kind, value); once closed, the job empties its log and ends."""
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
                if line.startswith(fetch_send.MARK + " "):
                    kind, _, value = line.removeprefix(fetch_send.MARK + " ").partition(" ")
                    yield kind, value
        reason = " ".join(jobs.job(job).message.split())[-200:] or "no reason given"
        raise ClusterError(f"fetch: job {job} ended before all was sent ({reason})")
    finally:
        with suppress(ClusterError):
            jobs.stop(job)
            if jobs.wait(job, _STOP_SECONDS).has_ended:
                jobs.forget(job)


class _Receiver:
    """What has arrived of a run, in a folder `parts` beside its place `to`."""

    def __init__(self, run: str, to: Path, parts: Path, on_progress: OnProgress) -> None:
        self._run, self._to, self._parts, self._on_progress = run, to, parts, on_progress
        self.have = digests(to) | digests(parts)
        self._digests: dict[str, str] = {}  # of whole files, by path
        self._links: dict[str, str] = {}  # a file's second name to its first
        self._begun: Counter[str] = Counter()  # how often a file was sent from its start
        self._received = self._total = 0

    def receive(self, lines: Iterator[tuple[str, str]]) -> bool:
        """Receives what a job sends; returns whether another job has to send more."""
        for kind, value in lines:
            if kind == "fault":
                raise RunError(f"{self._run}: {value}, as the head node sees it; name the run folder by its path there")
            if kind == "run":
                self._total = _check(json.loads(value), self._run, self._to)
            elif kind == "file":
                about = json.loads(value)
                name, offset = inside(about["path"]), int(about["offset"])
                if offset and offset == about["size"]:
                    if next(lines, None) != ("end", self.have[name][1]):
                        raise ClusterError(f"fetch: {name}: unexpected lines in the log; run the same command again")
                else:
                    self.have[name] = self._receive_file(lines, name, offset)
                if self.have[name][0] == about["size"]:
                    self._digests[name] = self.have[name][1]
            elif kind == "link":
                about = json.loads(value)
                self._links[inside(about["path"])] = inside(about["to"])
            elif kind == "done":
                return bool(json.loads(value)["more"])
        return False

    def _receive_file(self, lines: Iterator[tuple[str, str]], name: str, offset: int) -> tuple[int, str]:
        """Writes a file, or its rest; returns size and SHA-256 of what is here now."""
        path = self._parts / name
        self._begun[name] += not offset
        if self._begun[name] > _BEGINNINGS:
            raise ClusterError(f"fetch: {name}: changes faster than it comes; fetch it when the search has stopped")
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if offset and not path.exists():
                shutil.copyfile(self._to / name, path)
            digest = hashlib.sha256()
            with path.open("r+b" if offset else "wb") as file:
                fetch_send.feed(digest, file, offset)
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
                    self._received += len(piece)
                    self._on_progress(self._received, self._total)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
        if digest.hexdigest() != value:
            path.unlink()
            raise ClusterError(f"fetch: {name}: arrived damaged; run the same command again")
        return size, digest.hexdigest()

    def settle(self) -> Fetched:
        """Moves what has arrived to its place: a new folder at once, a file of an older one each at once.

        Files that were changed since they were fetched last, an evaluation made here for example, are left alone.
        """
        to, parts, arrived = self._to, self._parts, self._digests
        for path in [path for path in parts.rglob("*") if path.is_file()]:
            if path.relative_to(parts).as_posix() not in arrived:
                path.unlink()  # of an earlier attempt, and there no longer
        links = {name: first for name, first in self._links.items() if first in arrived}
        sources = {name: name for name in arrived} | links
        with write_errors(to):
            if not to.exists() or not any(to.iterdir()):
                for name, source in links.items():
                    _place(parts / source, parts / name)
                write_json(parts / RECORD, {name: arrived[source] for name, source in sources.items()})
                parts.rename(to)
                return Fetched(to, len(sources), self._received, [])
            record = to / RECORD
            known: dict[str, str] = json.loads(record.read_text("utf-8")) if record.is_file() else {}
            changed_here = []
            for name, source in sources.items():
                held = _digest(to / name)[1] if (to / name).is_file() else None
                if held not in (None, arrived[source], known.get(name)):
                    changed_here.append(name)
                    continue
                if held != arrived[source]:
                    _place(parts / source if (parts / source).exists() else to / source, to / name)
                known[name] = arrived[source]
            write_json(record, known)
        return Fetched(to, len(sources) - len(changed_here), self._received, changed_here)


def _check(header: dict[str, Any], run: str, to: Path) -> int:
    """Returns the size in bytes of a run; raises if it cannot come to a folder."""
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


def _decoded(value: str, name: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise ClusterError(f"fetch: {name}: arrived damaged; run the same command again") from None


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
    """Returns a relative path that stays in its folder; raises ClusterError if it leads out of it."""
    path = PurePosixPath(str(name))
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in str(name) or "\\" in str(name):
        raise ClusterError(f"fetch: a path that leads out of the run folder was sent ({str(name)[:100]!r})")
    return path.as_posix()


def digests(folder: Path) -> dict[str, tuple[int, str]]:
    """Returns size and SHA-256 of a folder's files by path; of none if it does not exist."""
    if not folder.is_dir():
        return {}
    return {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name not in (LOCK, RECORD)
    }


def _digest(path: Path) -> tuple[int, str]:
    """Returns a file's size and SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        return fetch_send.feed(digest, file, path.stat().st_size), digest.hexdigest()
