"""Addresses of Ray clusters, and a short question to a cluster before Ray itself joins it.

Ray tries for 20 seconds, in a line of its own a second, what a single call can tell at once: that nothing listens,
that the token is wrong, that the cluster runs another Ray.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass

from cdn_tune.distributed.ray import (
    RAY_VERSION_KEY,
    AuthenticationError,
    canonicalize_bootstrap_address_or_die,
    compute_version_info,
    gcs_service_pb2,
    gcs_service_pb2_grpc,
    grpc,
    init_grpc_channel,
    maybe_enable_token_auth_if_token_available,
    on_loopback,
    resolve_ip_for_localhost,
)
from cdn_tune.distributed.token import REMEDY, token_fault
from cdn_tune.errors import ClusterError

AUTO = "auto"
CLIENT = "ray://"
JOB_SERVER = ("http://", "https://")
_KINDS = "auto, HOST:PORT of the head node, ray://HOST:PORT or http://HOST:PORT of a job server"
_REACH_SECONDS = 10.0


@dataclass(frozen=True)
class Cluster:
    """What a head node tells before it is joined.

    Attributes:
        address: ``HOST:PORT`` of its GCS.
        dashboard: ``HOST:PORT`` of its dashboard and job server; None if it runs without.
        ray: Its version of Ray; None if it does not tell.
        python: Its version of Python; None if it does not tell.
    """

    address: str
    dashboard: str | None
    ray: str | None
    python: str | None


def is_job_server(address: str | None) -> bool:
    """Returns whether commands at this address run as jobs: a job server's or a Ray client's."""
    return address is not None and address.startswith((CLIENT, *JOB_SERVER))


def check_join(address: str) -> str:
    """Checks that this process can join the cluster as it is; returns ``HOST:PORT`` of its head node.

    Raises:
        ClusterError: If the address is of another kind, nothing answers there, the token is missing or wrong, or the
            cluster runs another version of Ray or Python.
    """
    if is_job_server(address):
        raise ClusterError(
            f"--address {address}: is reached through jobs, since a search has to run inside its cluster; "
            f"cdn-tune cluster submit --address {address} -- COMMAND runs it there"
        )
    cluster = ask(address)
    ours = dict(zip(("Ray", "Python"), compute_version_info(), strict=False))
    theirs = {"Ray": cluster.ray, "Python": cluster.python}
    wrong = [f"{name} {theirs[name]}, here {ours[name]}" for name in ours if theirs[name] not in (None, ours[name])]
    if wrong:
        raise ClusterError(
            f"--address {address}: the cluster runs {' and '.join(wrong)}; use the same environment on both sides, or "
            "cdn-tune cluster submit, which runs the command in the cluster's"
        )
    return cluster.address


def ask(address: str) -> Cluster:
    """Asks a head node, in one call each, for its versions and its dashboard.

    Args:
        address: ``auto`` or ``HOST:PORT``.

    Raises:
        ClusterError: If nothing answers there, or the token is missing or wrong.
    """
    where = find(address)
    versions = json.loads(_value(address, where, b"cluster", RAY_VERSION_KEY) or "{}")
    dashboard = _value(address, where, b"dashboard", b"dashboard")
    return Cluster(where, dashboard or None, versions.get("ray_version"), versions.get("python_version"))


def find(address: str) -> str:
    """Returns ``HOST:PORT`` of a head node.

    Raises:
        ClusterError: If the address cannot be understood, or ``auto`` finds no Ray on this machine.
    """
    if address == AUTO:
        maybe_enable_token_auth_if_token_available(
            warn_if_disabled=False
        )  # as Ray does, for a Ray of this machine only
        try:
            with on_loopback():
                here = str(canonicalize_bootstrap_address_or_die(AUTO))
            return here if is_on_loopback(here) else str(canonicalize_bootstrap_address_or_die(AUTO))
        except (ConnectionError, ValueError) as error:
            raise ClusterError(
                f"--address auto: {_line(error)[:160]}; run it on a node of the cluster, or write HOST:PORT"
            ) from None
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or not host or "/" in host:
        raise ClusterError(f"--address {address}: write {_KINDS}")
    try:
        _reach(host, port)
    except (OSError, OverflowError) as error:
        raise ClusterError(f"--address {address}: nothing answers there ({error}); is Ray running?") from None
    return address


def is_on_loopback(where: str) -> bool:
    """Returns whether a head node listens on the loopback interface alone.

    Ray replaces such an address by the machine's outward one, and then waits in vain.

    Args:
        where: ``HOST:PORT``, as `find` has found it.
    """
    host, _, port = where.rpartition(":")
    outward = resolve_ip_for_localhost(host.strip("[]"))
    if outward == host.strip("[]"):
        return False
    try:
        _reach(outward, port)
    except OSError:
        return True
    return False


def _reach(host: str, port: str) -> None:
    socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()


def _value(address: str, where: str, namespace: bytes, key: bytes) -> str:
    request = gcs_service_pb2.InternalKVGetRequest(namespace=namespace, key=key)
    channel = init_grpc_channel(where)
    try:
        reply = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel).InternalKVGet(request, timeout=_REACH_SECONDS)
    except AuthenticationError:
        raise ClusterError(f"--address {address}: RAY_AUTH_MODE=token, but there is no token; {REMEDY}") from None
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise ClusterError(f"--address {address}: {token_fault()}") from None
        raise ClusterError(
            f"--address {address}: no Ray cluster answers there ({_line(error.details())[:160]}); name the head "
            f"node's port (6379 by default): {_KINDS}"
        ) from None
    finally:
        channel.close()
    return bytes(reply.value).decode()


def _line(text: object) -> str:
    return " ".join(str(text).split())
