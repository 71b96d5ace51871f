"""A lease on a run's object store: one command at a time, on any machine; a killed one does not block for ever.

The holder writes the lease anew every few seconds. A command that wants it watches: a lease that changes is held; one
that has not changed for long enough by the watcher's own clock is free, and so is that of a process of this machine
that has ended. Clocks of different machines are never compared.
"""

import _thread
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from cdn_tune.data.files import parse_json
from cdn_tune.errors import RunError
from cdn_tune.training.object_store.store import ObjectStore

LOCK = ".lock"  # a file in the run folder, held against other processes of this machine
LEASE = ".lease"
RENEW_SECONDS = 5.0
STALE_SECONDS = 30.0
_SETTLE_SECONDS = 1.0  # in which another command that saw no lease, either, has written its own
_POLL_SECONDS = 0.5
_LOST = (
    "was taken over by another cdn-tune while the store could not be reached from here; the same command goes on once "
    "that one has ended"
)


class Lease:
    """Holds a run's store for one command.

    A holder that could not renew it for so long that another command has taken it is interrupted, as by Ctrl-C, and
    its process writes to that store no more.

    Raises:
        RunError: On entering, if another command holds it; on leaving, if it was lost.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store, self._owner, self._beat = store, secrets.token_hex(8), 0
        self._end, self.is_lost = threading.Event(), False
        self._thread = threading.Thread(target=self._renew, daemon=True, name="cdn-tune-lease")

    def __enter__(self) -> "Lease":
        self._store.closed = None
        held = _read(self._store)
        if held is not None and _is_live(self._store, held, STALE_SECONDS):
            raise RunError(
                f"{self._store.shown}: is in use by another cdn-tune (process {held.get('pid')} on {held.get('host')})"
                "; wait for it, or choose another --run"
            )
        self._write()
        time.sleep(_SETTLE_SECONDS)
        if not self._is_mine():
            raise RunError(f"{self._store.shown}: another cdn-tune has just begun to use it; wait for it")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        if not self.is_lost and self._is_mine():
            self._store.delete(LEASE)
        elif kind is None or issubclass(kind, KeyboardInterrupt):
            raise RunError(f"{self._store.shown}: {_LOST}")

    def _renew(self) -> None:
        while not self._end.wait(RENEW_SECONDS):
            with suppress(RunError):  # the store is away: tried again the next time
                if not self._is_mine():
                    self.is_lost, self._store.closed = True, _LOST
                    _thread.interrupt_main()
                    return
                self._write()

    def _is_mine(self) -> bool:
        return (_read(self._store) or {}).get("owner") == self._owner

    def _write(self) -> None:
        self._beat += 1
        facts = {"owner": self._owner, "beat": self._beat, "host": socket.gethostname(), **_myself()}
        self._store.write(LEASE, json.dumps(facts).encode())


def is_locked(folder: Path, name: str = LOCK) -> bool:
    """Returns whether a process of this machine holds a folder now; it does not wait, and creates nothing."""
    try:
        with (folder / name).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # closing the file gives it back
            except OSError:
                return True
    except OSError:
        pass
    return False


def is_leased(store: ObjectStore) -> bool:
    """Returns whether a command works on a run now, somewhere; watches for a few seconds if that is not clear."""
    held = _read(store)
    return held is not None and _is_live(store, held, 2 * RENEW_SECONDS)


def _is_live(store: ObjectStore, held: dict[str, Any], seconds: float) -> bool:
    """Watches a lease until it changes, is given back, or has not changed for so long."""
    if _is_dead_here(held):
        return False
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        now = _read(store)
        if now != held:
            return now is not None
    return False


def _read(store: ObjectStore) -> dict[str, Any] | None:
    content = store.read(LEASE)
    if content is None:
        return None
    try:
        held = parse_json(content)
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}


def _myself() -> dict[str, Any]:
    """Returns what identifies this process among all others, on this machine and elsewhere."""
    return {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _is_dead_here(held: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    machine = _machine()
    return machine is not None and held.get("machine") == machine and _started(held.get("pid")) != held.get("started")


def _machine() -> str | None:
    """Returns an identifier of this boot of this machine, and of this container on it; None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: object) -> str | None:
    """Returns when a process was started, in the kernel's ticks; None if it has ended, or is a zombie."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    return None
