"""Bringing a run folder home from a cluster, through a job that prints it; nothing that arrives is run or unpickled."""

from __future__ import annotations

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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cdn_tune.distributed import fetch_send as sender
from cdn_tune.distributed.fetch_receive import RECORD, Fetched, digests, inside, pieces, settle
from cdn_tune.distributed.jobs import Jobs
from cdn_tune.errors import ClusterError, RunError
from cdn_tune.training.runs.files import told
from cdn_tune.training.runs.run_folder import LOCK, MANIFEST

# What only the search that runs there needs: its lock, unfinished writes, and the states trials go on from.
LEFT_OUT = (LOCK, "*/" + LOCK, ".stop", ".*.tmp", "*/.*.tmp", RECORD)
STATES = ("last.pt", "previous.pt", "*/last.pt", "*/previous.pt")
_JOB_BYTES = 256 << 20  # that one job sends; its log is as large by a third, for a while, on the head node's disk
_JOBS = 10_000
_BEGINNINGS = 5
_STOP_SECONDS = 30.0

OnProgress = Callable[[int, int], None]


@dataclass
class _State:
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
            state = _receive(jobs, run, to, parts / "files", states, python, on_progress)
            result = settle(to, parts / "files", state.digests, state.links, state.received)
        shutil.rmtree(parts)
    except Timeout:
        raise RunError(f"{to}: another cdn-tune is fetching to it; wait for it") from None
    return result


def _receive(jobs: Jobs, run: str, to: Path, parts: Path, states: bool, python: str, on_progress: OnProgress) -> _State:
    state = _State()
    skip = [*LEFT_OUT, *(() if states else STATES)]
    have = {**digests(to), **digests(parts)}
    for _ in range(_JOBS):
        state.more = False
        lines = _lines(jobs, {"run": run, "have": have, "skip": skip, "limit": _JOB_BYTES}, python)
        try:
            _take(lines, run, to, parts, state, have, on_progress)
        finally:
            lines.close()
        if not state.more:
            break
    for path in [path for path in parts.rglob("*") if path.is_file()]:
        if path.relative_to(parts).as_posix() not in state.digests:
            path.unlink()  # of an earlier attempt, and there no longer
    return state


def _lines(jobs: Jobs, asked: dict[str, Any], python: str) -> Generator[tuple[str, str], None, None]:
    """Yields the lines of a job that sends, as (kind, value); once left, the job empties its log and goes."""
    with tempfile.TemporaryDirectory(prefix="cdn-tune-") as folder:
        shutil.copyfile(sender.__file__, Path(folder) / "sender.py")
        (Path(folder) / sender.ASKED).write_text(json.dumps(asked), "utf-8")
        job = jobs.submit(f"exec {shlex.quote(python)} sender.py", {"working_dir": folder}, {}, f"fetch {asked['run']}")
    rest = ""
    try:
        for text in jobs.follow(job):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                mark, _, told_ = line.partition(" ")
                if mark == sender.MARK:
                    kind, _, value = told_.partition(" ")
                    yield kind, value
        ended = jobs.job(job)
        raise ClusterError(f"fetch: job {job} ended before all was sent ({_reason(ended.message)})")
    finally:
        with suppress(ClusterError):
            jobs.stop(job)
            if jobs.wait(job, _STOP_SECONDS).has_ended:
                jobs.forget(job)


def _take(
    lines: Iterator[tuple[str, str]],
    run: str,
    to: Path,
    parts: Path,
    state: _State,
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
                state.digests[name] = _unchanged(lines, name, have[name][1])
                continue
            have[name] = _take_file(lines, to, parts, name, offset, state, total, on_progress)
            if have[name][0] == about["size"]:
                state.digests[name] = have[name][1]
        elif kind == "link":
            about = json.loads(value)
            state.links[inside(about["path"])] = inside(about["to"])
        elif kind == "done":
            state.more = bool(json.loads(value)["more"])
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


def _take_file(
    lines: Iterator[tuple[str, str]],
    to: Path,
    parts: Path,
    name: str,
    offset: int,
    state: _State,
    total: int,
    on_progress: OnProgress,
) -> tuple[int, str]:
    """Writes a file, or goes on with it; returns the size and the SHA-256 of what is here now."""
    path = parts / name
    state.begun[name] += not offset
    if state.begun[name] > _BEGINNINGS:
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
                state.received += len(piece)
                on_progress(state.received, total)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
    if digest.hexdigest() != value:
        path.unlink()
        raise ClusterError(f"fetch: {name}: arrived damaged; run the same command again")
    return size, digest.hexdigest()


def _unchanged(lines: Iterator[tuple[str, str]], name: str, digest: str) -> str:
    """Takes note that a file is here already; returns its SHA-256."""
    if next(lines, ("", "")) != ("end", digest):
        raise ClusterError(f"fetch: {name}: unexpected lines in the log; run the same command again")
    return digest


def _decoded(value: str, name: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise ClusterError(f"fetch: {name}: arrived damaged; run the same command again") from None


def _reason(text: str) -> str:
    return " ".join(text.split())[-200:] or "no reason told"
