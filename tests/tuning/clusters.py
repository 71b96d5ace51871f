"""Clusters of real raylets on this machine, in processes of their own; what tests of many nodes share."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.distributed.address import LOOPBACK

from .processes import descendants, end, is_alive, title

_HOST = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from ray.cluster_utils import Cluster
from cdn_tune.distributed.ray import ray

cluster, nodes = Cluster(shutdown_at_exit=True), {}
for line in sys.stdin:
    order = json.loads(line)
    try:
        if order["do"] == "add":
            node = cluster.add_node(
                num_cpus=order["cpus"], env_vars=order["env"], include_dashboard=False, object_store_memory=80 << 20
            )
            nodes[order["name"]] = node
            answer = {
                "address": cluster.address,
                "id": node.node_id,
                "raylet": [info.process.pid for info in node.all_processes["raylet"]],
                "gcs": [info.process.pid for info in node.all_processes.get("gcs_server", [])],
                "all": [info.process.pid for infos in node.all_processes.values() for info in infos],
            }
        else:
            cluster.remove_node(nodes.pop(order["name"]), allow_graceful=order["graceful"])
            answer = {}
    except Exception as error:
        answer = {"error": repr(error)}
    print(json.dumps(answer), flush=True)
"""


def outward() -> dict[str, str]:
    """Returns the environment of a node that others join; tests themselves are prepared for a Ray on loopback alone."""
    return {**os.environ, LOOPBACK: "1"}


class RayCluster:
    """Nodes of a cluster, each with a raylet of its own.

    Args:
        log: File for what their host prints.
    """

    def __init__(self, log: Path) -> None:
        self.address = ""
        self.raylets: dict[str, int] = {}
        self.ids: dict[str, str] = {}
        self._log = log
        self._inside: dict[str, subprocess.Popen[bytes]] = {}
        self._all: set[int] = set()
        self._gcs: list[int] = []
        with log.open("a") as file:
            self._host = subprocess.Popen(
                [sys.executable, "-c", _HOST],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=outward(),
                start_new_session=True,
            )

    def add(self, name: str, cpus: int = 1, env: Mapping[str, str] | None = None) -> None:
        """Adds a node; the first is the head."""
        answer = self._order(do="add", name=name, cpus=cpus, env=dict(env or {}))
        self.address, self.ids[name] = answer["address"], answer["id"]
        self.raylets[name] = answer["raylet"][0]
        self._all.update(answer["all"])
        self._gcs += answer["gcs"]

    def add_inside(self, name: str, prefix: Sequence[str], *more: str) -> None:
        """Adds a node of one CPU whose processes run under another command, such as one that makes namespaces."""
        start = f"start --address={self.address} --num-cpus=1 --object-store-memory={80 << 20} --block"
        inside = [*prefix, sys.executable, "-m", "ray.scripts.scripts", *start.split(), "--disable-usage-stats", *more]
        with self._log.open("a") as file:
            node = self._inside[name] = subprocess.Popen(
                inside, stdout=file, stderr=file, env=outward(), start_new_session=True
            )
        wait_for(lambda: raylets(descendants(node.pid)), 60)
        self.raylets[name] = raylets(descendants(node.pid))[0]

    def add_without(self, name: str, folder: Path) -> None:
        """Adds a node on which a folder is empty; skips the test where that cannot be had."""
        hide = [
            "unshare",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            'mount -t tmpfs none "$0" && exec "$@"',
            str(folder),
        ]
        if subprocess.run([*hide, "true"], capture_output=True, check=False).returncode:
            pytest.skip("mount namespaces cannot be made here")
        self.add_inside(name, hide)

    def kill(self, name: str) -> None:
        """Kills a node as a power cut would: its raylet, and the workers with it."""
        pid = self.raylets.pop(name)
        for each in (pid, *descendants(pid)):
            end(each)

    def kill_head(self) -> None:
        """Kills the cluster's head, GCS and all."""
        for pid in self._gcs:
            end(pid)
        self.kill(next(iter(self.raylets)))

    def remove(self, name: str) -> None:
        """Takes a node away as an operator does."""
        del self.raylets[name]
        self._order(do="remove", name=name, graceful=True)

    def workers(self, name: str) -> list[int]:
        """Returns the processes of a node in which trials run."""
        return [pid for pid in descendants(self.raylets[name]) if "ImplicitFunc" in title(pid)]

    def close(self) -> None:
        """Kills every node and waits until nothing is left."""
        family = {*self._all, *descendants(self._host.pid), *(node.pid for node in self._inside.values())}
        family |= {pid for each in family for pid in descendants(each)}
        for pid in (self._host.pid, *family):
            end(pid)
        for process in (self._host, *self._inside.values()):
            process.wait(timeout=30)
        for stream in (self._host.stdin, self._host.stdout):
            if stream is not None:
                stream.close()
        deadline = time.monotonic() + 30
        while any(is_alive(pid) for pid in family) and time.monotonic() < deadline:
            time.sleep(0.1)
        left = {pid: title(pid) for pid in family if is_alive(pid)}
        assert not left, f"processes outlived their cluster: {left}"

    def _order(self, **order: Any) -> dict[str, Any]:
        assert self._host.stdin is not None
        assert self._host.stdout is not None
        self._host.stdin.write(json.dumps(order) + "\n")
        self._host.stdin.flush()
        for line in self._host.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                assert "error" not in answer, answer
                return answer
        raise AssertionError("the host of the cluster has ended")


@contextlib.contextmanager
def ray_cluster(folder: Path, **nodes: int) -> Iterator[RayCluster]:
    """Yields a cluster of nodes with so many CPUs each, the head first."""
    cluster = RayCluster(folder / "cluster.log")
    try:
        for name, cpus in nodes.items():
            cluster.add(name, cpus)
        yield cluster
    finally:
        cluster.close()


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Waits until a condition holds.

    Raises:
        AssertionError: If it does not come to hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.05)


class PartitionedCluster(RayCluster):
    """A cluster with one node behind a network of its own, ``far``, which can be cut; needs root.

    Args:
        folder: For logs.
    """

    _NET, _NEAR, _FAR = "cdn-far", "cdn-near0", "cdn-far0"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "cluster.log")
        subnet = f"10.{os.getpid() % 200 + 20}.77"
        for line in (
            f"netns add {self._NET}",
            f"link add {self._NEAR} type veth peer name {self._FAR} netns {self._NET}",
            f"addr add {subnet}.1/24 dev {self._NEAR}",
            f"link set {self._NEAR} up",
            f"-n {self._NET} addr add {subnet}.2/24 dev {self._FAR}",
            f"-n {self._NET} link set {self._FAR} up",
            f"-n {self._NET} link set lo up",
            f"-n {self._NET} route add default via {subnet}.1",
        ):
            ip(line)
        self.add("head", 1)
        inside = ("ip", "netns", "exec", self._NET)
        self.add_inside("far", inside, f"--node-ip-address={subnet}.2")

    def cut(self, name: str) -> None:
        """Cuts the network."""
        assert name == "far"
        ip(f"link set {self._NEAR} down")

    def heal(self, name: str) -> None:
        """Mends it."""
        assert name == "far"
        ip(f"link set {self._NEAR} up")

    def close(self) -> None:
        """As without a network."""
        try:
            super().close()
        finally:
            ip(f"netns del {self._NET}", check=False)
            ip(f"link del {self._NEAR}", check=False)


class AutoscalingCluster:
    """A head of one CPU with an autoscaler, which adds and removes worker nodes of one CPU on this machine.

    Args:
        folder: For its configuration and logs.
        workers: It adds so many at most.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        self.address = f"{socket.gethostbyname(socket.gethostname())}:{port}"
        lists = ("setup", "initialization", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
        node = {"node_config": {}, "resources": {"CPU": 1, "object_store_memory": 80 << 20}}
        config: dict[str, Any] = {
            "cluster_name": "fake",
            "max_workers": workers,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 0.2,
            "provider": {"type": "fake_multinode", "gcs_address": self.address, "use_node_id_as_ip": True},
            "auth": {},
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {**node, "max_workers": 0},
                "ray.worker.cpu": {**node, "min_workers": 0, "max_workers": workers},
            },
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
            **{f"{name}_commands": [] for name in lists},
        }
        file = folder / "autoscaling.yaml"
        file.write_text(json.dumps(config))
        start = f"start --head --port={port} --num-cpus=1 --object-store-memory={80 << 20} --block"
        start += f" --include-dashboard=false --disable-usage-stats --autoscaling-config={file}"
        # `ray start` asks for the user's token where there is one; the clusters of cluster_utils do not.
        env = {
            **outward(),
            "RAY_AUTH_MODE": "disabled",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }
        with (folder / "autoscaler.log").open("a") as log:
            self._start = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *start.split()],
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
            )
        wait_for(self.alive, 60)

    def alive(self) -> list[int]:
        """Returns the raylets of the nodes there are."""
        return raylets(descendants(self._start.pid))

    def close(self) -> None:
        """Kills every node and waits until nothing is left."""
        family = [self._start.pid, *descendants(self._start.pid)]
        for pid in family:
            end(pid)
        self._start.wait(timeout=30)
        wait_for(lambda: not any(is_alive(pid) for pid in family), 30)


@contextlib.contextmanager
def partitioned_cluster(folder: Path) -> Iterator[PartitionedCluster]:
    """Yields a cluster of a head and the node ``far``; skips the test where networks cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None or ip("netns add cdn-probe", check=False):
        pytest.skip("network namespaces cannot be made here")
    ip("netns del cdn-probe", check=False)
    cluster = PartitionedCluster(folder)
    try:
        yield cluster
    finally:
        cluster.close()


@contextlib.contextmanager
def autoscaling_cluster(folder: Path, workers: int) -> Iterator[AutoscalingCluster]:
    """Yields a cluster of a head that adds so many worker nodes when they are wanted."""
    cluster = AutoscalingCluster(folder, workers)
    try:
        yield cluster
    finally:
        cluster.close()


def raylets(pids: Iterable[int]) -> list[int]:
    """Returns which processes are raylets."""
    return [pid for pid in pids if "/raylet/raylet" in title(pid).split(" ")[0]]


def ip(line: str, check: bool = True) -> int:
    """Runs an ``ip`` command; returns its exit code."""
    return subprocess.run(["ip", *line.split()], capture_output=True, check=check).returncode
