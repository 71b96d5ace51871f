"""A trial between its folder on this machine and its home: taken up from there, and brought there as it goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cdn_tune.errors import CheckpointError
from cdn_tune.training.object_store.fencing import LOCK, POSITION, Attempt
from cdn_tune.training.object_store.store import COPIED_BYTES, Entry
from cdn_tune.training.object_store.working_copy import Place
from cdn_tune.training.runs.checkpoint import read_checkpoint
from cdn_tune.training.runs.files import write_json
from cdn_tune.training.runs.records import EVENTS, METRICS
from cdn_tune.training.state import BEST, LAST, PREVIOUS

_EVENTS_SECONDS = 30.0  # curves are brought home so often


@dataclass(frozen=True)
class Position:
    """Which state of a trial a ``last.pt`` holds.

    Attributes:
        life: Told apart from a trial of the same number whose record was lost.
        attempt: Which process has written it.
        epoch: Finished epochs.
        step: Steps into the next one.
    """

    life: str
    attempt: str
    epoch: int
    step: int

    @property
    def reached(self) -> tuple[int, int]:
        """How far it is."""
        return self.epoch, self.step


class TrialHome:
    """Keeps a trial's home a folder from which it can be taken up on any machine.

    Home is ahead of what was reported: an epoch is told to whoever listens once its checkpoint is there. The best
    checkpoint comes before the last, as on disk, and the last before is kept beside it; whoever fetches takes them in
    the opposite order, so that a last never lacks its best, whatever happens in between.

    Args:
        place: The trial's folder and its home.
        folder: The trial's folder.
        attempt: This process's right to write there.
    """

    def __init__(self, place: Place, folder: Path, attempt: Attempt) -> None:
        self._place, self._home, self._folder, self._attempt = place, place.home, folder, attempt
        self._life = ""
        self._sent: dict[Path, tuple[tuple[int, int], Entry]] = {}  # file: which one it was, and what became of it
        self._events_sent = -_EVENTS_SECONDS

    def begin(self, alone: bool) -> Position | None:
        """Claims the trial, and fetches its state unless this machine has it, or one that is further.

        Args:
            alone: Whether no other machine needs the same state; else what home holds counts.

        Returns:
            Where the trial stands; None if it begins now.
        """
        self._attempt.claim()
        self._sweep()
        here, there = self._here(), self._there()
        if there is None:
            self._discard()
            self._life = self._attempt.token
            return None
        self._life = there.life
        if here == there:
            return there
        if alone and here is not None and here.life == there.life and here.reached > there.reached:
            return here  # was killed before it could be brought home
        self._fetch(there)
        return there

    def follow(self, position: Position | None) -> None:
        """Fetches the state that worker 0 goes on from, on the machine of another worker."""
        if position is None:
            if self._here() is not None:
                self._discard()
        elif self._here() != position:
            self._fetch(position)

    def check(self) -> None:
        """Called before a checkpoint is written; see `Attempt.check`."""
        self._attempt.check()

    def saved(self, epoch: int, step: int, history: Sequence[dict[str, Any]]) -> None:
        """Brings a checkpoint home that is on disk; called in the thread that has written it.

        Args:
            epoch: Finished epochs.
            step: Steps into the next one.
            history: The finished epochs' reports, plain.
        """
        position = Position(self._life, self._attempt.token, epoch, step)
        write_json(self._folder / POSITION, asdict(position))
        self._send(BEST)
        self._keep_previous()
        self._send(LAST)
        self._home.write(self._place.named(POSITION), json.dumps(asdict(position)).encode())
        lines = "".join(json.dumps(report) + "\n" for report in history)
        self._home.write(self._place.named(METRICS), lines.encode())
        if time.monotonic() - self._events_sent >= _EVENTS_SECONDS:
            self._send_events()

    def finish(self) -> None:
        """Sees to it that home holds what this process has written last, curves included.

        A process that was superseded between its look and its writing may have written in between.
        """
        self._attempt.check()
        for name, (_, entry) in list(self._sent.items()):
            if self._home.entry(self._place.named(name)) != entry:
                del self._sent[name]
                self._send(name)
        self._send_events()
        if (self._folder / METRICS).exists():
            self._home.upload(self._folder / METRICS, self._place.named(METRICS))

    def _keep_previous(self) -> None:
        """Keeps the last checkpoint at home beside the one to come."""
        last, previous = self._place.named(LAST), self._place.named(PREVIOUS)
        found = self._home.entry(last)
        if found is None:
            return
        self._attempt.check()
        if found.size <= COPIED_BYTES:
            self._home.copy(last, previous)
        elif (self._folder / PREVIOUS).exists():
            self._home.upload(self._folder / PREVIOUS, previous)

    def _send(self, name: Path) -> None:
        """Uploads a file if it is another one than was uploaded before."""
        path = self._folder / name
        try:
            status = path.stat()
        except FileNotFoundError:
            return
        which = (status.st_ino, status.st_mtime_ns)
        if name in self._sent and self._sent[name][0] == which:
            return
        self._attempt.check()
        self._sent[name] = which, self._home.upload(path, self._place.named(name))

    def _send_events(self) -> None:
        self._events_sent = time.monotonic()
        for path in sorted((self._folder / EVENTS).glob("*")):
            self._send(path.relative_to(self._folder))

    def _fetch(self, position: Position) -> None:
        """Replaces this machine's checkpoints by those at home."""
        self._discard()
        last = self._folder / LAST
        whole = self._home.download(self._place.named(LAST), last)
        self._home.download(self._place.named(BEST), self._folder / BEST)
        if whole:
            try:
                read_checkpoint(last)
            except CheckpointError:
                whole = False
        if not whole:
            self._home.download(self._place.named(PREVIOUS), self._folder / PREVIOUS)
        write_json(self._folder / POSITION, asdict(position))

    def _discard(self) -> None:
        shutil.rmtree((self._folder / LAST).parent, ignore_errors=True)
        (self._folder / POSITION).unlink(missing_ok=True)

    def _here(self) -> Position | None:
        path = self._folder / POSITION
        if not path.exists() or not (self._folder / LAST).exists():
            return None
        return _position(path.read_bytes())

    def _there(self) -> Position | None:
        content = self._home.read(self._place.named(POSITION))
        return None if content is None else _position(content)

    def _sweep(self) -> None:
        """Deletes other trials' checkpoints from this machine, unless they are trained here now: home has them."""
        if not self._place.name.startswith("trials/"):
            return
        for other in self._folder.parent.iterdir():
            checkpoints = (other / LAST).parent
            if other == self._folder or not checkpoints.is_dir():
                continue
            try:
                with FileLock(other / LOCK, timeout=0):
                    shutil.rmtree(checkpoints, ignore_errors=True)
            except Timeout:
                continue


def _position(content: bytes) -> Position | None:
    try:
        return Position(**json.loads(content))
    except (ValueError, TypeError):
        return None
