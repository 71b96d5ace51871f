"""What has arrived of a run folder: checked names and digests, and how files take their place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cdn_tune.errors import ClusterError
from cdn_tune.training.runs.files import told, write_json
from cdn_tune.training.runs.run_folder import LOCK

RECORD = ".fetched.json"  # digests of what was fetched, by path
_PIECE = 1 << 20


@dataclass(frozen=True)
class Fetched:
    """What has come.

    Attributes:
        folder: Where it lies.
        files: Files of the run that lie there now as they are on the cluster.
        received: Bytes that came over the network.
        changed_here: Files that were left alone because they were changed here.
    """

    folder: Path
    files: int
    received: int
    changed_here: list[str]


def settle(to: Path, parts: Path, arrived: Mapping[str, str], links: Mapping[str, str], received: int) -> Fetched:
    """Moves what has arrived to its place: a new folder at once, a file of an older one each at once.

    Files that were changed since they were fetched last, an evaluation made here for example, are left alone.

    Args:
        to: The place.
        parts: Where what has arrived lies; what lies in its place already does not.
        arrived: SHA-256 of files by path.
        links: Files that are other ones' second names, by path.
        received: Bytes that came.
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
