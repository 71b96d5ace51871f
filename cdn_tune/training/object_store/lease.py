"""Who works on a run at its home: one command at a time, on whichever machine; a killed one does not block for ever.

The holder writes the lease anew every few seconds. Whoever wants it watches: a lease that changes is held; one that has
stood still for long enough by the watcher's own clock is nobody's, and so is that of a process that is seen to be dead
on this machine. Clocks of different machines are never compared.
"""

from __future__ import annotations

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

from cdn_tune.errors import RunError
from cdn_tune.training.object_store.store import Home

LOCK = ".lock"  # a file in the run folder, held against other processes of this machine
LEASE = ".lease"
RENEW_SECONDS = 5.0
STALE_SECONDS = 30.0
_SETTLE_SECONDS = 1.0  # in which another one who saw no lease, either, has written its own
_LOOK_SECONDS = 0.5
_LOST = (
    "was taken over by another cdn-tune while the store could not be reached from here; the same command goes on once "
    "that one has ended"
)


class Lease:
    """Holds a run's home for one command.

    A holder that could not renew it for so long that another command has taken it is interrupted, as by Ctrl-C, and
    its process writes to that home no more.

    Args:
        home: The run's home.

    Raises:
        RunError: On entering, if another command holds it; on leaving, if it was lost.
    """

    def __init__(self, home: Home) -> None:
        self._home, self._owner, self._beat = home, secrets.token_hex(8), 0
        self._end, self.is_lost = threading.Event(), False
        self._thread = threading.Thread(target=self._renew, daemon=True, name="cdn-tune-lease")

    def __enter__(self) -> Lease:
        self._home.closed = None
        held = _read(self._home)
        if held is not None and _is_live(self._home, held, STALE_SECONDS):
            raise RunError(
                f"{self._home.shown}: is in use by another cdn-tune (process {held.get('pid')} on {held.get('host')}); "
                "wait for it, or choose another --run"
            )
        self._write()
        time.sleep(_SETTLE_SECONDS)
        if not self._is_mine():
            raise RunError(f"{self._home.shown}: another cdn-tune has just begun to use it; wait for it")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        if not self.is_lost and self._is_mine():
            self._home.delete(LEASE)
        elif kind is None or issubclass(kind, KeyboardInterrupt):
            raise RunError(f"{self._home.shown}: {_LOST}")

    def _renew(self) -> None:
        while not self._end.wait(RENEW_SECONDS):
            with suppress(RunError):  # away: seen again the next time
                if not self._is_mine():
                    self.is_lost, self._home.closed = True, _LOST
                    _thread.interrupt_main()
                    return
                self._write()

    def _is_mine(self) -> bool:
        return (_read(self._home) or {}).get("owner") == self._owner

    def _write(self) -> None:
        self._beat += 1
        facts = {"owner": self._owner, "beat": self._beat, "host": socket.gethostname(), **_myself()}
        self._home.write(LEASE, json.dumps(facts).encode())


def is_locked(folder: Path, name: str = LOCK) -> bool:
    """Returns whether a process of this machine holds a folder now; it does not wait, and creates nothing."""
    try:
        with (folder / name).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
            return False  # closing the file gives the lock back
    except OSError:
        return False


def is_leased(home: Home) -> bool:
    """Returns whether a command works on a run now, somewhere; watches for a few seconds if that is not clear."""
    held = _read(home)
    return held is not None and _is_live(home, held, 2 * RENEW_SECONDS)


def _is_live(home: Home, held: dict[str, Any], seconds: float) -> bool:
    """Watches a lease until it changes, is given back, or has stood still for so long."""
    if _is_dead_here(held):
        return False
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        now = _read(home)
        if now is None:
            return False
        if now != held:
            return True
    return False


def _read(home: Home) -> dict[str, Any] | None:
    content = home.read(LEASE)
    if content is None:
        return None
    try:
        held = json.loads(content)
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}


def _myself() -> dict[str, Any]:
    """Returns what tells this process from all others, on this machine and elsewhere."""
    return {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _is_dead_here(held: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    machine = _machine()
    return machine is not None and held.get("machine") == machine and _started(held.get("pid")) != held.get("started")


def _machine() -> str | None:
    """Returns what this start of this machine, and this container on it, is called; None if that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: object) -> str | None:
    """Returns when a process was started, in the kernel's ticks; None if there is none (a zombie is none)."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    return None
