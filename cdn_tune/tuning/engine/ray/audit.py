"""The audit at the end of a run: what a search left in Ray, among processes, in shared memory and on GPUs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path

from cdn_tune.compat import live_actors
from cdn_tune.distributed.nodes import ray_processes
from cdn_tune.distributed.ray import placement_group_table, ray

WAIT_SECONDS = 30.0
_PAUSE = 0.1
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps shared memory
_QUERY = ("--query-compute-apps=pid", "--format=csv,noheader")
_CUDA = "/dev/nvidia-uvm"  # what has it open uses CUDA; tools that only ask a GPU how it is do not
# Ray's own: one for the whole cluster, started with its first Train run, and as long-lived as the cluster.
_SERVICES = {"_AutoscalingCoordinatorActor"}
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # of nodes: they outlive a killed one by a minute, then go


@dataclass(frozen=True)
class Snapshot:
    """What exists at a moment, each by a descriptive name.

    Attributes:
        placement_groups: That Ray holds, of this process's cluster.
        actors: That Ray has alive, of this job, and detached ones of any.
        processes: That descend from this one, except those of a Ray it has started while it is connected to it.
        shared_memory: Segments of this user.
        gpu_processes: Those, Ray's among them, that hold memory of a GPU.
        in_ray: Whether this process was connected to a Ray.
    """

    placement_groups: frozenset[str]
    actors: frozenset[str]
    processes: frozenset[str]
    shared_memory: frozenset[str]
    gpu_processes: frozenset[str]
    in_ray: bool


@dataclass(frozen=True)
class Audit:
    """What exists after a run that did not exist before it.

    Attributes:
        placement_groups: By id, with their bundles.
        actors: By class, with id and process.
        processes: By process id, with their command.
        shared_memory: Paths.
        gpu_processes: By process id, with their command.
    """

    placement_groups: tuple[str, ...] = ()
    actors: tuple[str, ...] = ()
    processes: tuple[str, ...] = ()
    shared_memory: tuple[str, ...] = ()
    gpu_processes: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left."""
        return not any(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        kinds = {field.name.replace("_", " "): getattr(self, field.name) for field in fields(self)}
        if self.is_clean:
            return "nothing left behind"
        found = [f"{len(names)} {kind} ({'; '.join(names)})" for kind, names in kinds.items() if names]
        return f"left behind: {', '.join(found)}".replace("gpu", "GPU")


def snapshot() -> Snapshot:
    """Returns what exists now; taken before a run, in the state in which `audit` will be called.

    Where Ray is started for the run and ended with it, both are called without a Ray: then its processes and its
    memory count. Where a Ray is joined, both are called connected to it.
    """
    connected = ray.is_initialized()
    return Snapshot(
        placement_groups=frozenset(_placement_groups()) if connected else frozenset(),
        actors=frozenset(_actors()) if connected else frozenset(),
        processes=frozenset(_processes(connected)),
        shared_memory=frozenset(_segments()),
        gpu_processes=frozenset(_gpu_processes()),
        in_ray=connected,
    )


def audit(before: Snapshot, wait: float = WAIT_SECONDS) -> Audit:
    """Returns what a run left behind; waits a while for what is still ending.

    Args:
        before: From before the run.
        wait: At most so many seconds.
    """
    deadline = time.monotonic() + wait
    while True:
        found = _difference(before, snapshot())
        if found.is_clean or time.monotonic() >= deadline:
            return found
        time.sleep(_PAUSE)


def _difference(before: Snapshot, now: Snapshot) -> Audit:
    if not before.in_ray and now.in_ray:  # Ray itself was left running: its processes are what is left
        now = Snapshot(**{**vars(now), "processes": frozenset(_processes(connected=False))})
    new: dict[str, frozenset[str]] = {
        field.name: getattr(now, field.name) - getattr(before, field.name) for field in fields(Audit)
    }
    new["shared_memory"] -= _strangers(new["shared_memory"])
    return Audit(**{kind: tuple(sorted(names)) for kind, names in new.items()})


def _placement_groups() -> list[str]:
    return [
        f"{identity} of {len(group['bundles'])} bundles, {group['state'].lower()}"
        for identity, group in placement_group_table().items()
        if group["state"] != "REMOVED"
    ]


def _actors() -> list[str]:
    job = ray.get_runtime_context().get_job_id()
    return [
        f"{actor['ActorClassName']} {actor['ActorID']}, process {actor['Pid']}"
        for actor in live_actors()
        if (actor["JobID"] == job or actor["IsDetached"]) and actor["ActorClassName"] not in _SERVICES
    ]


@dataclass(frozen=True)
class _Process:
    parent: int
    command: str


def _all_processes() -> dict[int, _Process]:
    """Returns the processes of this machine without zombies, which hold nothing."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            program, _, arguments = (folder / "cmdline").read_bytes().decode(errors="replace").partition("\0")
            if program.startswith("/"):
                program = program.rpartition("/")[2]  # a long path would hide what runs
            command = f"{program} {arguments}".replace("\0", " ").strip()
            if state != "Z" and command:
                found[int(folder.name)] = _Process(int(parent), command[:80])
    return found


def _descendants(processes: dict[int, _Process], but: Collection[int] = ()) -> set[int]:
    """Returns this process's descendants, and worker processes of a Ray that has ended without them."""
    orphans = {
        pid
        for pid, process in processes.items()
        if process.command.startswith("ray::") and not process.command.startswith(_AGENTS)
        if process.parent not in processes.keys() - {1} and _is_mine(pid)
    }
    found, last = {os.getpid()} | orphans, 0
    while len(found) != last:
        last = len(found)
        found |= {pid for pid, process in processes.items() if process.parent in found and pid not in but}
    return found - {os.getpid()}


def _processes(connected: bool) -> list[str]:
    """Returns the processes that are this one's; while it is connected to a Ray that it has started, without Ray's."""
    processes = _all_processes()
    own = _descendants(processes, ray_processes() if connected else ())
    helper = "multiprocessing.resource_tracker"  # Python's own: one for life
    return [f"{pid} {processes[pid].command}" for pid in own if helper not in processes[pid].command]


def _segments() -> list[str]:
    """Returns this user's segments of shared memory: Ray's store, torch's tensors, other libraries'."""
    with contextlib.suppress(OSError):
        return [str(path) for path in _SHARED_MEMORY.iterdir() if path.lstat().st_uid == os.getuid()]
    return []


def _strangers(segments: Collection[str]) -> set[str]:
    """Returns the segments that other programs of this user have mapped."""
    if not segments:
        return set()
    processes = _all_processes()
    found = set()
    for pid in processes.keys() - _descendants(processes) - {os.getpid()}:
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
            found |= {segment for segment in segments if segment in maps}
    return found


def _gpu_processes() -> list[str]:
    """Returns which of this process's descendants hold memory of a GPU."""
    listed, processes = _listed_on_gpus(), _all_processes()
    held = (pid for pid in _descendants(processes) if pid in listed or _has_open(pid, _CUDA))
    return [f"{pid} {processes[pid].command}" for pid in held]


def _listed_on_gpus() -> set[int]:
    """Returns the processes that the GPU driver lists; in many containers it lists none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return set()
    try:
        listed = subprocess.run([command, *_QUERY], capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return {int(line) for line in listed.stdout.splitlines() if line.strip().isdigit()}


def _has_open(pid: int, device: str) -> bool:
    with contextlib.suppress(OSError):
        return any(os.readlink(link) == device for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _is_mine(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}").stat().st_uid == os.getuid()
    return False
