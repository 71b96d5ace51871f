"""The nodes of a joined cluster: resources, free resources, installed versions, and clocks."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cdn_tune.compat import free_resources
from cdn_tune.distributed.nodes import pinned, small_task
from cdn_tune.distributed.ray import GetTimeoutError, RayError, ray

PACKAGES = ("torch", "ray", "optuna")
_HEAD = "node:__internal_head__"
_ACCELERATOR = "accelerator_type:"
_ANSWER_SECONDS = 60.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class NodeInfo:
    """A node's state.

    Attributes:
        versions: Of Python, cdn-tune and `PACKAGES`, and the path of its ``python``; a package that is missing has
            None. None if the node did not answer.
        clock: Seconds by which its clock is ahead of this machine's, if that exceeds the time an answer takes; 0.0
            else; None if the node did not answer.
        fault: Why it did not answer; empty if it did.
    """

    id: str  # hexadecimal
    address: str
    host: str
    is_alive: bool
    is_head: bool
    total: dict[str, float]  # resources, as Ray names them; memory in bytes
    free: dict[str, float]
    gpu: str  # kind of its GPUs; empty if it has none, or Ray gives none
    versions: dict[str, str | None] | None = None
    clock: float | None = None
    fault: str = ""


def node_info(seconds: float = _ANSWER_SECONDS) -> list[NodeInfo]:
    """Returns the state of all nodes of the joined cluster, the head node first.

    Args:
        seconds: How long a node may take to answer; one without a warm process starts one first.
    """
    free = free_resources()
    nodes = sorted(ray.nodes(), key=lambda node: (_HEAD not in node["Resources"], node["NodeManagerAddress"]))
    answers = _query([node["NodeID"] for node in nodes if node["Alive"]], seconds)
    return [_node(node, free.get(node["NodeID"], {}), answers) for node in nodes]


def here() -> dict[str, str | None]:
    """Returns the versions of this process, in the form of `NodeInfo.versions`."""
    return dict(_describer()(PACKAGES)["versions"])


def differences(node: NodeInfo, ours: Mapping[str, str | None]) -> dict[str, tuple[str | None, str | None]]:
    """Returns what differs on a node from this process, name to (there, here); nothing if it did not answer."""
    versions = (node.versions or {}).items()
    return {name: (there, ours[name]) for name, there in versions if name != "executable" and there != ours[name]}


def _node(node: dict[str, Any], free: Mapping[str, float], answers: Mapping[str, dict[str, Any] | str]) -> NodeInfo:
    total = {name: float(value) for name, value in node["Resources"].items()}
    answer = answers.get(node["NodeID"], "is not alive")
    facts = answer if isinstance(answer, dict) else None
    return NodeInfo(
        id=node["NodeID"],
        address=node["NodeManagerAddress"],
        host=node["NodeManagerHostname"],
        is_alive=node["Alive"],
        is_head=_HEAD in total,
        total=total,
        free=dict(free) if node["Alive"] else {},
        gpu=next((name.removeprefix(_ACCELERATOR) for name in total if name.startswith(_ACCELERATOR)), ""),
        versions=None if facts is None else facts["versions"],
        clock=None if facts is None else clock_offset(facts["time"], facts["sent"], facts["received"]),
        fault="" if facts is not None else str(answer),
    )


def clock_offset(there: float, sent: float, received: float) -> float:
    """Returns the seconds by which a clock is ahead at least; negative if behind, 0.0 if it may be right.

    Args:
        there: Its time at some moment between the question and the answer.
        sent: When the question was sent, by our clock.
        received: When the answer had come, by our clock.
    """
    return there - received if there > received else min(there - sent, 0.0)


def _query(nodes: list[str], seconds: float) -> dict[str, dict[str, Any] | str]:
    """Returns each node's answer, or why it gave none, by the node's id; all are queried at once.

    Each is queried twice: only an answer for which no process has to be started measures the clock well.
    """
    describe = small_task(_describer())
    answers: dict[str, dict[str, Any] | str] = {}
    waiting = {pinned(describe, node).remote(PACKAGES): (node, time.time()) for node in nodes}
    deadline = time.monotonic() + seconds
    while waiting and time.monotonic() < deadline:
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=_POLL_SECONDS)
        for reference in ready:
            node, sent = waiting.pop(reference)
            received = time.time()
            is_first = node not in answers
            try:
                answers[node] = {**ray.get(reference, timeout=1.0), "sent": sent, "received": received}
            except (RayError, GetTimeoutError) as error:
                answers.setdefault(node, " ".join(str(error).split())[:200])
                continue
            if is_first:
                waiting[pinned(describe, node).remote(PACKAGES)] = (node, time.time())
    for reference, (node, _) in waiting.items():
        ray.cancel(reference, force=True)
        answers.setdefault(node, f"did not answer within {seconds:.0f} s")
    return answers


def _describer() -> Callable[[tuple[str, ...]], dict[str, Any]]:
    """Returns the function that nodes run; nested, it is pickled whole, so that a node without cdn-tune runs it too."""

    def describe(packages: tuple[str, ...]) -> dict[str, Any]:
        import platform
        import sys
        import time
        from importlib import metadata

        now = time.time()
        versions: dict[str, str | None] = {"python": platform.python_version(), "executable": sys.executable}
        try:
            import cdn_tune

            versions["cdn-tune"] = cdn_tune.__version__
        except ImportError:
            versions["cdn-tune"] = None
        for name in packages:
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                versions[name] = None
        return {"time": now, "versions": versions}

    return describe
