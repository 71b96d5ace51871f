"""A trial's folder and its copy on an object store: fetched when a trial begins, uploaded as it goes on.

Fencing: of two processes that train one trial, only the later one may write. A trial restarted elsewhere may meet its
old process again, when a network heals or a frozen machine wakes up, and a file lock does not reach across machines. So
each attempt writes a token when it begins, and compares it before every write.
"""

import json
import logging
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cdn_tune.data.files import parse_json
from cdn_tune.errors import CheckpointError, RunError
from cdn_tune.training.object_store.store import COPIED_BYTES, Entry
from cdn_tune.training.object_store.working_copy import POSITION, TRAINING_LOCK, Place, place_of
from cdn_tune.training.runs.checkpoint import BEST, LAST, PREVIOUS, read_checkpoint
from cdn_tune.training.runs.files import write_bytes, write_json
from cdn_tune.training.runs.records import EVENTS, METRICS

ATTEMPT = ".attempt"
_EVENTS_SECONDS = 30.0  # between two uploads of the curves

_LOG = logging.getLogger(__name__)


class Superseded(RunError):  # noqa: N818 - as our other errors
    """Another process has begun to train this trial; this one's results are no longer wanted."""


class Attempt:
    """One process's right to write a trial's folder and its copy on the store, until the next attempt takes it.

    Args:
        folder: The trial's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.token = secrets.token_hex(8)
        self._folder, self._place = folder, place_of(folder)

    def claim(self) -> None:
        """Takes the right away from every earlier attempt.

        Raises:
            RunError: If the token cannot be written.
        """
        content = self.token.encode()
        if self._place is not None:
            self._place.store.write(self._place.named(ATTEMPT), content)
        else:
            write_bytes(self._folder / ATTEMPT, content)

    def check(self) -> None:
        """Does nothing as long as no later attempt has begun.

        Raises:
            Superseded: If one has, or the trial was given up.
            RunError: If the token cannot be read.
        """
        held = self._held()
        if held is None:
            raise Superseded(f"{self._folder}: was deleted while it was trained; the same command begins anew")
        if held != self.token.encode():
            raise Superseded(
                f"{self._folder}: another process has taken this trial over, or it was given up; this one, which was "
                "lost from sight meanwhile, writes no more"
            )

    def best_saved(self) -> None:
        """No-op: there is no copy elsewhere."""

    def saved(self, epoch: int, step: int, history: Sequence[dict[str, Any]]) -> None:
        """No-op: there is no copy elsewhere."""

    def send_metrics(self) -> None:
        """No-op: there is no copy elsewhere."""

    def finish(self) -> None:
        """No-op: there is no copy elsewhere."""

    def _held(self) -> bytes | None:
        if self._place is not None:
            return self._place.store.read(self._place.named(ATTEMPT))
        try:
            return (self._folder / ATTEMPT).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{self._folder / ATTEMPT}: cannot be read ({error.strerror}); mend the disk") from None


@dataclass(frozen=True)
class Position:
    """Which state of a trial a ``last.pt`` holds."""

    life: str  # tells a trial from one of the same number whose record was lost
    attempt: str  # token of the process that has written it
    epoch: int  # finished epochs
    step: int  # steps into the next one

    @property
    def reached(self) -> tuple[int, int]:
        """How far it is."""
        return self.epoch, self.step


class TrialSync:
    """Keeps the store's copy of a trial one from which the trial can go on, on any machine.

    What is written to the disk is uploaded before the epoch is reported that waits for it. The best checkpoint is
    uploaded before the last, as on disk, and the last before is kept beside it; fetching takes them in the opposite
    order, so that a last never lacks its best, whatever happens in between.

    Args:
        place: The trial's folder, here and on the store.
        folder: The trial's folder.
        attempt: This process's right to write there.
    """

    def __init__(self, place: Place, folder: Path, attempt: Attempt) -> None:
        self._place, self._store, self._folder, self._attempt = place, place.store, folder, attempt
        self._life = ""
        self._sent: dict[Path, tuple[tuple[int, int], Entry]] = {}  # file: its inode and time, the object it became
        self._events_sent = -_EVENTS_SECONDS

    def begin(self, alone: bool) -> Position | None:
        """Claims the trial, and fetches its state unless this machine has it, or one that is further.

        Args:
            alone: Whether no other machine needs the same state; else the store's counts.

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
            return here  # its process was killed before it could be uploaded
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

    def best_saved(self) -> None:
        """Uploads the best model, which is on disk; called in the thread that has written it."""
        self._send(BEST)

    def saved(self, epoch: int, step: int, history: Sequence[dict[str, Any]]) -> None:
        """Uploads a checkpoint that is on disk; called in the thread that has written it.

        Args:
            epoch: Finished epochs.
            step: Steps into the next one.
            history: The finished epochs' reports, plain.
        """
        position = asdict(Position(self._life, self._attempt.token, epoch, step))
        write_json(self._folder / POSITION, position)
        self._send(BEST)
        self._keep_previous()
        self._send(LAST)
        self._store.write(self._place.named(POSITION), json.dumps(position).encode())
        lines = "".join(json.dumps(report) + "\n" for report in history)
        self._store.write(self._place.named(METRICS), lines.encode())
        if time.monotonic() - self._events_sent >= _EVENTS_SECONDS:
            self._send_events()

    def send_metrics(self) -> None:
        """Uploads the epochs' records, where no checkpoint may follow that brings them along.

        If the store cannot be reached, that is left to the next upload.

        Raises:
            Superseded: If another process trains the trial by now.
        """
        try:
            self._send(Path(METRICS))
        except Superseded:
            raise
        except RunError as error:
            _LOG.warning("%s", error)

    def finish(self) -> None:
        """Uploads what the store lacks of this process's files, curves included.

        A process that was superseded between its check and its write may have written in between.
        """
        self._attempt.check()
        for name, (_, entry) in list(self._sent.items()):
            if self._store.entry(self._place.named(name)) != entry:
                del self._sent[name]
                self._send(name)
        self._send_events()
        self._send(Path(METRICS))

    def _keep_previous(self) -> None:
        """Copies the store's last checkpoint to its name as the previous one."""
        last, previous = self._place.named(LAST), self._place.named(PREVIOUS)
        found = self._store.entry(last)
        if found is None:
            return
        self._attempt.check()
        if found.size <= COPIED_BYTES:
            self._store.copy(last, previous)
        elif (self._folder / PREVIOUS).exists():
            self._store.upload(self._folder / PREVIOUS, previous)

    def _send(self, name: Path) -> None:
        """Uploads a file unless it is the one that was uploaded before, or missing."""
        path = self._folder / name
        try:
            status = path.stat()
        except FileNotFoundError:
            return
        version = (status.st_ino, status.st_mtime_ns)
        if name in self._sent and self._sent[name][0] == version:
            return
        self._attempt.check()
        self._sent[name] = version, self._store.upload(path, self._place.named(name))

    def _send_events(self) -> None:
        self._events_sent = time.monotonic()
        for path in sorted((self._folder / EVENTS).glob("*")):
            self._send(path.relative_to(self._folder))

    def _fetch(self, position: Position) -> None:
        """Replaces this machine's checkpoints by the store's; fetches the previous one if the last is damaged."""
        self._discard()
        last = self._folder / LAST
        whole = self._store.download(self._place.named(LAST), last)
        self._store.download(self._place.named(BEST), self._folder / BEST)
        if whole:
            try:
                read_checkpoint(last)
            except CheckpointError:
                whole = False
        if not whole:
            self._store.download(self._place.named(PREVIOUS), self._folder / PREVIOUS)
        write_json(self._folder / POSITION, asdict(position))

    def _discard(self) -> None:
        shutil.rmtree((self._folder / LAST).parent, ignore_errors=True)
        (self._folder / POSITION).unlink(missing_ok=True)

    def _here(self) -> Position | None:
        path = self._folder / POSITION
        return _position(path.read_bytes()) if path.exists() and (self._folder / LAST).exists() else None

    def _there(self) -> Position | None:
        content = self._store.read(self._place.named(POSITION))
        return None if content is None else _position(content)

    def _sweep(self) -> None:
        """Deletes other trials' checkpoints from this machine, unless they are trained here now: the store has them."""
        if not self._place.name.startswith("trials/"):
            return
        for other in self._folder.parent.iterdir():
            checkpoints = (other / LAST).parent
            if other == self._folder or not checkpoints.is_dir():
                continue
            try:
                with FileLock(other / TRAINING_LOCK, timeout=0):
                    shutil.rmtree(checkpoints, ignore_errors=True)
            except Timeout:
                continue


def _position(content: bytes) -> Position | None:
    try:
        return Position(**parse_json(content))
    except (ValueError, TypeError):
        return None
