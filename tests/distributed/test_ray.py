"""A Ray of ours: the environment that it starts in, who may reach it, what its node answers."""

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdn_tune.distributed.node_info import differences, here, node_info
from cdn_tune.distributed.ray import short_folder
from cdn_tune.errors import ClusterError
from tests.distributed.conftest import family_of

LISTEN = "0A"


def test_rays_sockets_fit_behind_the_folder_for_temporary_files(tmp_path: Path) -> None:
    """``AF_UNIX path length cannot exceed 107 bytes``: a cluster's job has a long TMPDIR of its own."""
    longest = "/" + "t" * 34
    socket = f"{longest}/ray/session_2026-11-29_01-37-27_123456_4194304/sockets/plasma_store.1"
    assert len(socket) <= 107
    assert short_folder(longest) == longest
    assert short_folder(longest + "t", [str(tmp_path / "absent"), "/tmp"]) == "/tmp"  # noqa: S108
    assert short_folder("/ü" * 17, ["/tmp"]) == "/tmp"  # noqa: S108 - bytes count
    assert short_folder(longest + "t", [str(tmp_path / "absent")]) == longest + "t"
    assert os.environ["RAY_TMPDIR"]


@pytest.mark.parametrize("mode", ["", "disabled"])
def test_a_token_for_a_cluster_without_one_is_told(mode: str, ray_session, monkeypatch: pytest.MonkeyPatch) -> None:
    from cdn_tune.distributed import cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(cluster.ray, "get", lambda *_, **__: mode)
    with pytest.raises(ClusterError, match=r"^--address a:1: RAY_AUTH_MODE=token here.*; set RAY_AUTH_MODE=disabled"):
        cluster._check_workers("a:1")


@pytest.mark.compat("a Ray of ours listens on loopback and asks for a token")
def test_a_ray_of_ours_listens_on_loopback_only_and_asks_for_a_token(ray_session) -> None:
    from ray._raylet import AuthenticationMode, get_authentication_mode

    listening = list(listeners(os.getpid()))
    assert {name for name, _ in listening} >= {"gcs_server", "raylet"}
    for name, address in listening:
        assert (getattr(address, "ipv4_mapped", None) or address).is_loopback, (name, address)
    assert get_authentication_mode() == AuthenticationMode.TOKEN


def test_nodes_answer_for_themselves(ray_session) -> None:
    [node] = node_info()
    assert node.is_head
    assert node.fault == ""
    assert node.clock == 0.0
    assert differences(node, here()) == {}
    assert differences(node, here() | {"torch": "1.0"}) == {"torch": (node.versions["torch"], "1.0")}


def test_a_node_that_does_not_answer_is_told(ray_session) -> None:
    [node] = node_info(seconds=0.0)
    assert node.versions is None
    assert node.clock is None
    assert node.fault == "did not answer within 0 s"


def listeners(pid: int) -> Iterator[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    """Names of a process and its descendants, with the addresses they listen at."""
    owners = {}
    for each in family_of(pid):
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{each}/comm").read_text().strip()
            owners |= {link.readlink().name: name for link in Path(f"/proc/{each}/fd").iterdir() if link.is_symlink()}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            owner = owners.get(f"socket:[{fields[9]}]")
            if fields[3] == LISTEN and owner is not None:
                words = [bytes.fromhex(fields[1].split(":")[0])[start : start + 4] for start in range(0, 16, 4)]
                yield owner, ipaddress.ip_address(b"".join(word[::-1] for word in words))


def test_listeners_are_found() -> None:
    with socket.create_server(("", 0)), socket.create_server(("::1", 0), family=socket.AF_INET6):
        found = {address for _, address in listeners(os.getpid())}
    assert {ipaddress.ip_address(0), ipaddress.ip_address("::1")} <= found
