"""Starting a Ray on this machine, or joining a running one; only what was started here is stopped."""

import logging
import math
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cdn_tune.config import ResourcesConfig
from cdn_tune.distributed.address import (
    AUTH_MODE,
    LOOPBACK,
    check_join,
    ensure_token,
    is_on_loopback,
    other_version,
    wants_token,
)
from cdn_tune.distributed.nodes import alive_nodes, children, record_started
from cdn_tune.distributed.ray import ON_LOOPBACK, GetTimeoutError, RayError, ray
from cdn_tune.errors import ClusterError

_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")  # of the cluster, then of this process
_WORKER_SECONDS = 60.0
_RAY_THREADS = "ray_"  # the names of the threads in which Ray prints what a cluster reports begin so
_inside = threading.local()  # `logs` while a thread logs: a handler may itself write to a terminal


@contextmanager
def connected(address: str | None = None) -> Iterator[dict[str, float]]:
    """Yields the total resources, e.g. ``{"CPU": 2.0}``, of a Ray cluster that is joined or started for the block.

    A Ray that this process is already connected to is used and left running.

    Args:
        address: ``auto`` or ``HOST:PORT`` of a running cluster; None starts one here, which listens on the loopback
            interface alone and requires a token.

    Raises:
        ClusterError: If the cluster cannot be reached or refuses the token, or runs another Ray or Python.
    """
    started = not ray.is_initialized()
    if started:
        with _signals_kept():
            _start(address)
    try:
        with ray_output_logged():
            if started:
                _check_workers(address)
            yield dict(ray.cluster_resources())
    finally:
        if started:
            record_started(None)
            ray.shutdown()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Starts Ray in the block: its processes ignore SIGHUP, so that trials save a checkpoint when a terminal is lost.

    Afterwards this process handles signals as before: Ray puts its own handler of SIGTERM in place, which prints a
    stack and exits.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what is ignored stays so in the processes that are started
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _start(address: str | None) -> None:
    head = None if address is None else check_join(address)
    if (head is None or is_on_loopback(head)) != ON_LOOPBACK:
        raise ClusterError(
            f"{'a Ray started here' if address is None else f'--address {address}'}: Ray was imported for another "
            f"network interface; set {LOOPBACK}={int(ON_LOOPBACK)} before Python starts, or call "
            f"cdn_tune.distributed.address.prepare({address!r}) before Ray is imported"
        )
    before = children()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if head is None:
                ensure_token()
            ray.init(
                address=head or "local",
                runtime_env=_runtime_env(),
                logging_level=logging.ERROR,
                log_to_driver=False,
                **({"include_dashboard": False} if head is None else {}),
            )
        except Exception as error:  # Ray raises plain ones too, of a node that does not come up in time
            reason = " ".join(str(error).split())
            if address is None:
                raise ClusterError(f"Ray cannot be started here ({reason[:200]})") from None
            versions = _VERSIONS.findall(reason)
            if len(versions) == 2:
                raise other_version(
                    address, dict(zip(("Ray", "Python"), zip(*versions, strict=True), strict=True))
                ) from None
            raise ClusterError(f"--address {address}: no Ray cluster answers there ({reason[:200]})") from None
    record_started(children() - before if head is None else None)
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _runtime_env() -> dict[str, str]:
    """Returns the path of this Python, quoted if it needs to be: Ray starts workers through a shell."""
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def _check_workers(address: str | None) -> None:
    """Raises if no worker process starts (another Python, a broken environment): Ray would wait for ever.

    Raises too if workers send no token and this process asks for one: tasks run, but actors die before they start.
    """
    try:
        mode = ray.get(ray.remote(num_cpus=0)(lambda: os.environ.get(AUTH_MODE, "")).remote(), timeout=_WORKER_SECONDS)
    except (GetTimeoutError, RayError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClusterError(
            f"Ray started no worker process within {_WORKER_SECONDS:.0f} s ({reason}); "
            f"its logs are in {os.environ['RAY_TMPDIR']}/ray/session_latest/logs"
        ) from None
    if wants_token() and mode.lower() != "token":
        raise ClusterError(
            f"--address {address}: {AUTH_MODE}=token here, but the cluster runs without a token; "
            f"set {AUTH_MODE}=disabled, or start the cluster with {AUTH_MODE}=token"
        )


class _WithoutRay:
    """A text stream that sends what Ray's threads write to Ray's logger, and passes on all else."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes or logs a text; returns its length."""
        if getattr(_inside, "logs", False) or not threading.current_thread().name.startswith(_RAY_THREADS):
            return int(self._stream.write(text))
        if text.strip():
            _inside.logs = True
            try:
                logging.getLogger("ray").warning("%s", text.strip())
            finally:
                _inside.logs = False
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def ray_output_logged() -> Iterator[None]:
    """Sends what Ray prints in the block, such as that a worker was killed, to the logger ``ray``.

    No setting of Ray's keeps it from printing.
    """
    out, err = sys.stdout, sys.stderr
    ours: Any = _WithoutRay(out), _WithoutRay(err)
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:  # but for a stream that was put on top meanwhile
        sys.stdout = out if sys.stdout is ours[0] else sys.stdout
        sys.stderr = err if sys.stderr is ours[1] else sys.stderr


def node_resources() -> list[dict[str, float]]:
    """Returns the resources of each node of the joined cluster that is alive now, e.g. ``[{"CPU": 2.0}]``."""
    return [node.resources for node in alive_nodes()]


def capacity(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """Returns how many trials, of such resources each, the nodes have room for at once.

    A worker occupies one node, and a fraction of a GPU one GPU: two nodes with a CPU each have no room for a worker of
    two CPUs, and two GPUs have room for four workers of 0.4, not five.
    """
    return _workers(resources, nodes) // resources.workers


def slots(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """Returns how many trials the nodes have room for at once; raises ClusterError if not one can ever be placed."""
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
