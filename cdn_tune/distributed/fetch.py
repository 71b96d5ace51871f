"""Fetches a run folder from a cluster, through a job that prints it: `fetch_protocol` has the lines, and the sender.

Nothing that arrives is run or unpickled, and nothing is written but files of this run, each checked by its SHA-256.
"""

import hashlib
import os
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cdn_tune.data.files import parse_json, read_json
from cdn_tune.distributed import fetch_protocol
from cdn_tune.distributed.fetch_protocol import (
    Begin,
    Data,
    Done,
    End,
    Link,
    ProtocolError,
    Request,
    Run,
    SenderFault,
    feed,
)
from cdn_tune.distributed.jobs import Jobs
from cdn_tune.errors import ClusterError, RunError
from cdn_tune.training.runs.files import write_errors, write_json
from cdn_tune.training.runs.run_folder import LOCK, MANIFEST, read_manifest

RECORD = ".fetched.json"  # digests of what was fetched, by path
# What only the search that runs there needs: locks, its stop flag and unfinished writes, all of them hidden files,
LEFT_OUT = (".*", "*/.*")
# and the states that trials go on from.
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
        ClusterError: If a job fails, or what arrives does not follow the protocol or is damaged.
    """
    to = to.resolve()
    held = _held(to)
    folder = to.parent / f".{to.name}.fetching"
    with write_errors(to):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            receiver = _Receiver(to, held, folder / "files", on_progress)
            skip = (*LEFT_OUT, *(() if states else STATES))
            more = True
            while more:
                request = Request(run, receiver.have, skip, _JOB_BYTES)
                with closing(_log(jobs, request, python)) as log:
                    more = receiver.receive(fetch_protocol.read(log, request))
            result = receiver.settle()
        shutil.rmtree(folder)
    except Timeout:
        raise RunError(f"{to}: another cdn-tune is fetching to it; wait for it") from None
    except SenderFault as fault:
        reason = " ".join(str(fault).split())
        raise RunError(f"{run}: {reason}, as the head node sees it; name the run folder by its path there") from None
    except ProtocolError as error:
        raise ClusterError(
            f"fetch {run}: what arrives is damaged ({error}); run the same command again, or copy the folder by other "
            "means (scp, rsync)"
        ) from None
    return result


def _held(to: Path) -> dict[str, Any] | None:
    """Returns the manifest of the run that a folder holds; None if it is new or empty.

    Raises:
        RunError: If it holds something else, of which the cluster would be told the names and digests.
    """
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return None
    if not (to / MANIFEST).is_file():
        raise RunError(f"{to}: exists and is no run folder; choose another --to")
    return read_manifest(to)


def _log(jobs: Jobs, request: Request, python: str) -> Generator[str, None, None]:
    """Yields the log of a job that sends; once closed, the job empties its log and ends."""
    sender = Path(fetch_protocol.__file__)
    with tempfile.TemporaryDirectory(prefix="cdn-tune-") as folder:
        shutil.copyfile(sender, Path(folder) / sender.name)
        request.write(Path(folder) / fetch_protocol.REQUEST)
        command = f"exec {shlex.quote(python)} {sender.name}"
        job = jobs.submit(command, {"working_dir": folder}, {}, f"fetch {request.run}")
    try:
        yield from jobs.follow(job)
        reason = " ".join(jobs.job(job).message.split())[-200:] or "no reason given"
        raise ClusterError(f"fetch: job {job} ended before all was sent ({reason})")
    finally:
        with suppress(ClusterError):
            jobs.stop(job)
            if jobs.wait(job, _STOP_SECONDS).has_ended:
                jobs.forget(job)


class _Receiver:
    """What has arrived of a run, in a folder `parts` beside its place `to`, which holds the run `held` or is new."""

    def __init__(self, to: Path, held: dict[str, Any] | None, parts: Path, on_progress: OnProgress) -> None:
        self._to, self._manifest, self._parts, self._on_progress = to, held, parts, on_progress
        self.have = digests(to) | digests(parts)
        self._digests: dict[str, str] = {}  # of whole files, by path
        self._links: dict[str, str] = {}  # a file's second name to its first
        self._begun: Counter[str] = Counter()  # how often a file was sent from its start
        self._received = self._total = 0

    def receive(self, frames: Iterator[fetch_protocol.Frame]) -> bool:
        """Receives what a job sends; returns whether another job has to send more.

        Each job goes through all files, so what counts is what the last one sends.
        """
        self._digests, self._links = {}, {}
        for frame in frames:
            if isinstance(frame, Run):
                self._accept(frame)
            elif isinstance(frame, Begin):
                self._receive_file(frames, frame)
            elif isinstance(frame, Link):
                self._links[frame.path] = frame.to
            elif isinstance(frame, Done):
                return frame.more
        raise AssertionError("frames end with Done")

    def _accept(self, run: Run) -> None:
        """Raises RunError if a run cannot come to the folder."""
        there = _parsed(run.manifest)
        if self._manifest is not None and self._manifest != there:
            raise RunError(f"{self._to}: holds another run; choose another --to")
        self._manifest, self._total = there, run.bytes
        free = shutil.disk_usage(self._parts.parent).free
        here = sum(size for size, _ in self.have.values())
        if run.bytes - here > free:
            raise RunError(
                f"{self._to}: the run takes {run.bytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free; "
                "choose another --to"
            )
        if self._received > _BEGINNINGS * run.most_bytes:
            raise ProtocolError("more than the whole run has arrived")

    def _receive_file(self, frames: Iterator[fetch_protocol.Frame], begin: Begin) -> None:
        """Writes a file, or its rest."""
        name, offset = begin.path, begin.offset
        path = self._parts / name
        self._begun[name] += not offset
        if self._begun[name] > _BEGINNINGS:
            raise ClusterError(f"fetch: {name}: changes faster than it comes; fetch it when the search has stopped")
        if offset and offset == begin.size:  # all of it is here
            size, found, sent = offset, self.have[name][1], _digest_of(next(frames))
        else:
            size, found, sent = self._write(frames, path, name, offset)
        if found != sent:
            path.unlink(missing_ok=True)
            raise ProtocolError(f"{name}: its digest is another")
        self.have[name] = size, found
        if size == begin.size:
            self._digests[name] = found

    def _write(
        self, frames: Iterator[fetch_protocol.Frame], path: Path, name: str, offset: int
    ) -> tuple[int, str, str]:
        """Writes what comes of a file; returns its size, its SHA-256, and the one that was sent."""
        sent, digest = "", hashlib.sha256()
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if offset and not path.exists():
                shutil.copyfile(self._to / name, path)
            with path.open("r+b" if offset else "wb") as file:
                feed(digest, file, offset)
                file.truncate(offset)
                file.seek(offset)
                for frame in frames:
                    if not isinstance(frame, Data):
                        sent = _digest_of(frame)
                        break
                    file.write(frame.piece)
                    digest.update(frame.piece)
                    self._received += len(frame.piece)
                    self._on_progress(self._received, self._total)
                file.flush()
                os.fsync(file.fileno())
                return file.tell(), digest.hexdigest(), sent

    def settle(self) -> Fetched:
        """Moves what has arrived to its place: a new folder at once, a file of an older one each at once.

        Files that were changed since they were fetched last, an evaluation made here for example, are left alone.
        """
        to, parts, arrived = self._to, self._parts, self._digests
        held = [folder / MANIFEST for folder in (parts, to) if (folder / MANIFEST).is_file()]
        if MANIFEST not in arrived or _parsed(held[0].read_text("utf-8", errors="replace")) != self._manifest:
            raise ProtocolError(f"{MANIFEST} is not that of the run")
        for path in [path for path in parts.rglob("*") if path.is_file()]:
            if path.relative_to(parts).as_posix() not in arrived:
                path.unlink()  # of an earlier attempt, and there no longer
        sources = {name: name for name in arrived} | {
            name: first for name, first in self._links.items() if first in arrived
        }
        with write_errors(to):
            if not to.exists() or not any(to.iterdir()):
                for name, source in sources.items():
                    if name != source:
                        _place(parts / source, parts / name)
                write_json(parts / RECORD, {name: arrived[source] for name, source in sources.items()})
                parts.rename(to)
                return Fetched(to, len(sources), self._received, [])
            known = _record(to / RECORD)
            changed_here = []
            for name, source in sources.items():
                held_digest = _digest(to / name)[1] if (to / name).is_file() else None
                if held_digest not in (None, arrived[source], known.get(name)):
                    changed_here.append(name)
                    continue
                if held_digest != arrived[source]:
                    _place(parts / source if (parts / source).exists() else to / source, to / name)
                known[name] = arrived[source]
            write_json(to / RECORD, known)
        return Fetched(to, len(sources) - len(changed_here), self._received, changed_here)


def _digest_of(frame: fetch_protocol.Frame) -> str:
    assert isinstance(frame, End)  # noqa: S101 - `read` sees to it
    return frame.sha256


def _parsed(manifest: str) -> dict[str, Any]:
    """Returns a manifest that was sent."""
    try:
        value = parse_json(manifest)
    except ValueError:
        value = None
    if not isinstance(value, dict) or "kind" not in value:
        raise ProtocolError(f"its {MANIFEST} is not a cdn-tune manifest")
    return value


def _record(path: Path) -> dict[str, str]:
    """Returns the digests of what was fetched earlier."""
    if not path.is_file():
        return {}
    try:
        return {str(name): str(digest) for name, digest in read_json(path).items()}
    except (ValueError, AttributeError):
        raise RunError(
            f"{path}: is damaged; delete it and fetch again, files that differ from the cluster's then stay as they are"
        ) from None


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
        return feed(digest, file, path.stat().st_size), digest.hexdigest()
