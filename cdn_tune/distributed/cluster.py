"""Starting a Ray on this machine or joining a running one, quietly; only what was started here is stopped."""

from __future__ import annotations

import logging
import math
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from cdn_tune.config import ResourcesConfig
from cdn_tune.distributed.address import check_join, is_on_loopback
from cdn_tune.distributed.nodes import alive_nodes
from cdn_tune.distributed.ray import AuthenticationError, GetTimeoutError, RayError, on_loopback, ray
from cdn_tune.distributed.token import ensure_token
from cdn_tune.errors import ClusterError

_WORKER_SECONDS = 60.0


@contextmanager
def connected(address: str | None = None) -> Iterator[dict[str, float]]:
    """Joins a Ray cluster, or starts one on this machine for the duration.

    A Ray that this process is already connected to is used and left running.

    Args:
        address: ``auto`` or ``HOST:PORT`` of a running cluster; None starts one here, which listens on the loopback
            interface alone and asks for a token.

    Yields:
        The cluster's total resources, e.g. ``{"CPU": 2.0}``.

    Raises:
        ClusterError: If the cluster cannot be reached or refuses the token, or runs another Ray or Python.
    """
    started = not ray.is_initialized()
    if started:
        handler = signal.getsignal(signal.SIGTERM)
        _start(address)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own in place, which prints a stack and exits
    try:
        if started:
            _check_workers()
        yield dict(ray.cluster_resources())
    finally:
        if started:
            ray.shutdown()


def _start(address: str | None) -> None:
    head = None if address is None else check_join(address)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if head is None:
                ensure_token()
                with on_loopback():
                    ray.init(
                        address="local",
                        runtime_env=_runtime_env(),
                        include_dashboard=False,
                        logging_level=logging.ERROR,
                        log_to_driver=False,
                    )
            else:
                with on_loopback() if is_on_loopback(head) else nullcontext():
                    ray.init(address=head, logging_level=logging.ERROR, log_to_driver=False, runtime_env=_runtime_env())
        except (OSError, ValueError, RuntimeError, AuthenticationError) as error:
            reason = " ".join(str(error).split())[:200]
            what = (
                "Ray cannot be started here"
                if address is None
                else f"--address {address}: no Ray cluster answers there"
            )
            raise ClusterError(f"{what} ({reason})") from None
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _runtime_env() -> dict[str, str]:
    """Ray starts workers through a shell and does not quote their Python: a path with a space must come quoted."""
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def _check_workers() -> None:
    """Ray waits for ever for worker processes that cannot start (another Python, a broken environment)."""
    try:
        ray.get(ray.remote(num_cpus=0)(_answer).remote(), timeout=_WORKER_SECONDS)
    except (GetTimeoutError, RayError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClusterError(
            f"Ray started no worker process within {_WORKER_SECONDS:.0f} s ({reason}); "
            "its logs are in /tmp/ray/session_latest/logs"
        ) from None


def _answer() -> bool:
    return True


def node_resources() -> list[dict[str, float]]:
    """Returns the resources of each node of the joined cluster that is alive now, e.g. ``[{"CPU": 2.0}]``."""
    return [node.resources for node in alive_nodes()]


def capacity(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """Returns how many trials the nodes have room for at once.

    A worker occupies one node, and a fraction of a GPU one GPU: two nodes with a CPU each have no room for a worker of
    two CPUs, and two GPUs have room for four workers of 0.4, not five.

    Args:
        resources: What one trial occupies.
        nodes: Each node's total resources.
    """
    return _workers(resources, nodes) // resources.workers


def slots(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """Returns how many trials the nodes have room for at once, as `capacity` does.

    Raises:
        ClusterError: If not even one trial can ever be placed.
    """
    workers = _workers(resources, nodes)
    if workers < resources.workers:
        needs = f"{resources.cpus_per_worker} CPUs"
        if resources.gpus_per_worker:
            needs += f" and {resources.gpus_per_worker:g} GPUs"
        largest = max(nodes, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)), default={})
        no_gpu = resources.gpus_per_worker and not any(node.get("GPU", 0.0) for node in nodes)
        remedy = (
            "resources.gpus_per_worker=0 trains on CPUs" if no_gpu else "lower --workers or resources, or add nodes"
        )
        raise ClusterError(
            f"resources: a trial needs {resources.workers} x {needs}, a worker on one node, and there is room for "
            f"{workers} of them (the largest node has {largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} "
            f"GPUs); {remedy}"
        )
    return workers // resources.workers


def _workers(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """Returns how many workers the nodes have room for."""
    share, found = resources.gpus_per_worker, 0
    for node in nodes:
        cpus, gpus = math.floor(node.get("CPU", 0.0) / resources.cpus_per_worker), node.get("GPU", 0.0)
        if share:
            of_gpus = math.floor(gpus) * math.floor(1 / share + 1e-9) if share < 1 else math.floor(gpus / share)
            cpus = min(cpus, of_gpus)
        found += cpus
    return found
