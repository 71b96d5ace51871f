"""The nodes of the joined cluster: which are alive, tasks on chosen ones, and whether an error is a node's loss."""

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdn_tune.distributed.ray import (
    ActorUnavailableError,
    ActorUnschedulableError,
    NodeAffinitySchedulingStrategy,
    RayActorError,
    RayError,
    ray,
)

_NODE_ID = "ray.io/node-id"  # the label that Ray gives every node
_started: frozenset[int] | None = None  # processes of the Ray that this process has started; None if it has joined one


@dataclass(frozen=True)
class Node:
    """A node that is alive."""

    id: str  # hexadecimal
    name: str  # of its host
    resources: dict[str, float]  # in all, e.g. {"CPU": 8.0, "GPU": 2.0}
    address: str


def alive_nodes() -> list[Node]:
    """Returns the nodes that are alive now."""
    return [
        Node(node["NodeID"], node["NodeManagerHostname"], dict(node["Resources"]), node["NodeManagerAddress"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def this_node() -> str:
    """Returns the id of the node that this process, a driver or a worker, is on."""
    return str(ray.get_runtime_context().get_node_id())


def host_name() -> str:
    """Returns this machine's name, as Ray gives it."""
    return socket.gethostname()


def was_started_here() -> bool:
    """Returns whether this process has started the Ray it is connected to, rather than joined one."""
    return _started is not None


def ray_processes() -> frozenset[int]:
    """Returns the ids of the processes that the Ray started here consists of; their children are workers."""
    return _started or frozenset()


def record_started(processes: frozenset[int] | None) -> None:
    """Records which processes a Ray consists of that was started here; None if it has ended, or was joined."""
    global _started
    _started = processes


def children() -> frozenset[int]:
    """Returns the ids of this process's children; of none where there is no ``/proc``."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(path.parent.name))
    return frozenset(found)


def off_nodes(nodes: tuple[str, ...]) -> dict[str, str]:
    """Returns the label selector that keeps clear of some nodes; empty if there are none."""
    return {_NODE_ID: f"!in({','.join(nodes)})"} if nodes else {}


def small_task(function: Callable[..., Any]) -> Any:
    """Returns a function, module-level or whole in itself, as a Ray task that occupies nothing and is tried once."""
    return ray.remote(num_cpus=0, max_retries=0)(function)


def pinned(task: Any, node: str) -> Any:
    """Returns a Ray task as it runs on one node, by id, or nowhere."""
    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))


def node_was_lost(error: BaseException | None) -> bool:
    """Returns whether an actor's failure is that of its node, preempted, killed or unreachable, rather than its own."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, RayActorError):
        error = cause
    if isinstance(error, ActorUnavailableError | ActorUnschedulableError):
        return True
    return isinstance(error, RayActorError) and (error.preempted or "node has died" in str(error))


def reason_of(error: BaseException) -> str:
    """Returns the innermost reason of an error that Ray has wrapped, in one line."""
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else getattr(error, "cause", None) or error.__cause__
    if isinstance(cause, BaseException):
        return reason_of(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class OnNodes:
    """Calls a module-level function on chosen nodes, beside whatever runs there, without waiting for it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._task, self._arguments = small_task(function), arguments
        self._running: dict[str, Any] = {}

    def start(self, node: str) -> None:
        """Calls it on a node, by id, unless it runs there."""
        if node not in self._running:
            self._running[node] = pinned(self._task, node).remote(*self._arguments)

    def finished(self) -> dict[str, Any]:
        """Returns what it has returned since the last call, by node; the error if it, or the node, died."""
        results: dict[str, Any] = {}
        for node, reference in list(self._running.items()):
            if ray.wait([reference], timeout=0)[0]:
                del self._running[node]
                try:
                    results[node] = ray.get(reference)
                except RayError as error:
                    results[node] = error
        return results

    def cancel(self) -> None:
        """Ends what still runs."""
        for reference in self._running.values():
            ray.cancel(reference, force=True)
        self._running.clear()
