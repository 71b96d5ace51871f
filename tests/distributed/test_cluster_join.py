"""Joining a cluster: what an address, a token, a version are told to be wrong with."""

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cdn_tune.distributed.address import (
    LOOPBACK,
    check_join,
    ensure_token,
    has_token,
    is_job_server,
    is_on_loopback,
    job_server,
    token_fault,
)
from cdn_tune.distributed.node_info import clock_offset
from cdn_tune.errors import ClusterError
from tests.distributed.conftest import running_head

OTHER_VERSIONS = """
import json
from cdn_tune.distributed.address import prepare
prepare("{address}")
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._raylet import GcsClient
from cdn_tune.distributed.address import check_join
from cdn_tune.distributed.cluster import connected
from cdn_tune.errors import ClusterError
kv = GcsClient(address="{address}")
key = (CLUSTER_METADATA_KEY, KV_NAMESPACE_CLUSTER)
ours = json.loads(kv.internal_kv_get(*key))
def put(**versions):
    kv.internal_kv_put(CLUSTER_METADATA_KEY, json.dumps(ours | versions).encode(), True, KV_NAMESPACE_CLUSTER)
for versions in ({{"ray_version": "2.1.0"}}, {{"python_version": "3.9.1"}}):
    try:
        put(**versions)
        with connected("{address}"):
            pass
    except ClusterError as error:
        print(error)
    finally:
        put()
assert check_join("{address}") == "{address}"
"""


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("foo", "write auto, HOST:PORT"),
        ("host:port", "write auto"),
        ("a/b:12", "write auto"),
        ("127.0.0.1:1", "nothing answers there"),
        ("http://127.0.0.1:8265", "cdn-tune cluster submit --address http://127.0.0.1:8265"),
        ("ray://127.0.0.1:10001", "has to run inside its cluster"),
    ],
)
def test_wrong_addresses_are_told_at_once(address: str, told: str) -> None:
    with pytest.raises(ClusterError, match=told) as caught:
        check_join(address)
    assert "\n" not in str(caught.value)


def test_something_else_that_listens_is_no_cluster() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(ClusterError, match="no Ray cluster answers there"):
                check_join(f"127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()


def test_job_servers_are_told_from_clusters() -> None:
    assert all(map(is_job_server, ("http://a:1", "https://a", "ray://a:1")))
    assert not any(map(is_job_server, (None, "auto", "a:1")))


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("token", "refuses this token"),
        ("disabled", "none was sent (RAY_AUTH_MODE=disabled)"),
        (None, "none was sent (RAY_AUTH_MODE is not set)"),
    ],
)
def test_a_refused_token_is_told_with_the_remedy(mode: str | None, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
    assert told in token_fault()
    assert "RAY_AUTH_TOKEN_PATH" in token_fault()
    assert "s3cret" not in token_fault()


@pytest.fixture
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a home that has no token yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    return tmp_path / ".ray" / "auth_token"


def test_a_new_token_is_for_its_owner_alone(no_token: Path) -> None:
    ensure_token()
    assert no_token.stat().st_mode & 0o777 == 0o600
    token = no_token.read_text()
    assert len(token) >= 32
    assert has_token()
    ensure_token()
    assert no_token.read_text() == token
    assert [path.name for path in no_token.parent.iterdir()] == ["auth_token"]


def test_a_token_is_made_where_its_variable_says(
    no_token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "mine"))
    assert "there is no token" in token_fault()
    ensure_token()
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o600
    assert not no_token.exists()


def test_no_token_is_made_for_who_wants_none(no_token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ensure_token()
    assert not no_token.exists()


@pytest.mark.compat("a cluster is joined, or refuses in one line")
@pytest.mark.parametrize(
    ("token", "command", "told"),
    [("wrong-token", ("status", "address"), "refuses this token"), (None, ("jobs", "jobs"), "none was sent")],
)
def test_a_cluster_refuses_who_has_no_token(head, token, command, told) -> None:
    result = head.call("cluster", command[0], "--address", getattr(head, command[1]), token=token)
    assert result.returncode == 2
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert head.token not in result.stderr
    assert "wrong-token" not in result.stderr


@pytest.mark.slow
def test_a_cluster_without_a_token_is_joined_without_one_only(ray_start: None) -> None:
    with running_head(token=None) as head:
        refused, joined = (
            head.call("cluster", "status", "--address", head.address, token=each) for each in ("t", None)
        )
    assert (refused.returncode, joined.returncode) == (2, 0), refused.stderr + joined.stderr
    assert "RAY_AUTH_MODE=token here, but the cluster runs without a token" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr


@pytest.mark.compat("a cluster is joined, or refuses in one line")
def test_another_version_is_one_line(head) -> None:
    result = head.script(OTHER_VERSIONS.format(address=head.address))
    assert result.returncode == 0, result.stderr
    of_ray, of_python = result.stdout.strip().splitlines()
    assert "the cluster runs Ray 2.1.0, here 2." in of_ray
    assert "the cluster runs Python 3.9.1, here 3." in of_python


def test_a_cluster_names_its_job_server(head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)
    assert job_server(head.address) == head.jobs
    assert job_server("http://elsewhere:1") == "http://elsewhere:1"


@pytest.mark.compat("nodes and what of them is free")
def test_status_tells_nodes_versions_and_room(head) -> None:
    result = head.call("cluster", "status", "--address", head.address, "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    [node] = told["nodes"]
    assert node["is_head"]
    assert node["versions"]["cdn-tune"] == told["here"]["cdn-tune"]
    assert node["differs"] == []
    assert node["total"]["CPU"] == 2
    assert (told["trials_now"], told["trials_at_most"]) == (2, 2)


@pytest.mark.parametrize(("there", "offset"), [(100.0, 0.0), (101.9, 0.0), (222.0, 120.0), (40.0, -60.0)])
def test_a_clock_is_off_only_if_no_delay_explains_it(there: float, offset: float) -> None:
    assert clock_offset(there, sent=100.0, received=102.0) == pytest.approx(offset)


@pytest.mark.parametrize(
    ("address", "loopback", "sends"),
    [(None, "0", "token"), ("10.11.12.13:6379", "1", None), ("http://h:8265", "1", None), ("auto", "1", "token")],
)
def test_the_environment_is_set_before_ray_is_imported(address: str | None, loopback: str, sends: str | None) -> None:
    code = (
        "import os, sys; from cdn_tune.distributed.address import LOOPBACK, prepare\n"
        f"prepare({address!r}); prepare('another:1')\n"
        "assert 'ray' not in sys.modules\n"
        "print(os.environ[LOOPBACK], os.environ.get('RAY_AUTH_MODE'))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_TOKEN": "mine", "RAY_ADDRESS": "10.11.12.13:6379", "RAY_TMPDIR": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == [loopback, str(sends)], done.stderr


def test_who_joins_through_another_interface_than_ray_was_imported_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from cdn_tune.distributed import cluster

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "ON_LOOPBACK", False)
    with pytest.raises(ClusterError, match=f"{LOOPBACK}=0 before Python starts"), cluster.connected():
        pass


def test_a_head_node_on_loopback_is_known(head) -> None:
    assert is_on_loopback(head.address)
    assert not is_on_loopback("10.11.12.13:6379")
    with socket.create_server(("", 0)) as everywhere:
        everywhere.settimeout(5)
        threading.Thread(target=answer_as_grpc, args=(everywhere,), daemon=True).start()
        assert not is_on_loopback(f"127.0.0.1:{everywhere.getsockname()[1]}")


def answer_as_grpc(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(100)
        connection.sendall(bytes(3) + b"\x04" + bytes(5))


def test_a_ray_that_does_not_come_up_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from cdn_tune.distributed import cluster

    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    with pytest.raises(ClusterError, match=r"cannot be started here \(The current node timed out"), cluster.connected():
        pass
