"""Addresses and tokens of Ray clusters, and quick checks before Ray itself joins one; imports no Ray.

Ray takes 20 seconds and more to find what one call of ``ray status``, in a process of its own, shows at once: that
nothing listens, that the token is wrong, that the cluster runs another Ray. Ray reads a token from RAY_AUTH_TOKEN,
then from the file named by RAY_AUTH_TOKEN_PATH, then from ``~/.ray/auth_token``, and sends it if RAY_AUTH_MODE is
``token``.
"""

import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cdn_tune.errors import ClusterError

AUTO = "auto"
CLIENT = "ray://"
JOB_SERVER = ("http://", "https://")
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # with 0 Ray takes 127.0.0.1 for this machine's address
AUTH_MODE = "RAY_AUTH_MODE"  # with token Ray sends and requires one
_KINDS = "auto, HOST:PORT of the head node, ray://HOST:PORT or http://HOST:PORT of a job server"
_HERE = ("localhost", "127.0.0.1", "::1")  # hosts that Ray replaces by its own address of this machine
_REACH_SECONDS = 10.0
_STATUS_SECONDS = 30.0
_JOB_SERVER_SECONDS = 15.0
_OVERRULING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # Ray prefers them to an address that it is given
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)  # of HTTP/2, with empty settings
_OTHER_RAY = re.compile(r"cluster has Ray version (\S+) but local Ray version is (\S+)")
_PATH = "import sys; sys.path[:] = filter(None, sys.path); "  # not the working directory, which may hold a ray.py
_STATUS = _PATH + "from ray.scripts.scripts import main; main()"
_NAME_JOB_SERVER = (
    _PATH + "from ray.job_submission import JobSubmissionClient as Client; print(Client(sys.argv[1]).get_address())"
)

_AUTH_BYTES = 32
_AUTH_REMEDY = (
    "set RAY_AUTH_MODE=token, and give the cluster's token in RAY_AUTH_TOKEN_PATH=FILE or ~/.ray/auth_token "
    "(on the head node: ray get-auth-token)"
)

_prepared = False


def is_job_server(address: str | None) -> bool:
    """Returns whether commands at this address run as jobs: a job server's or a Ray client's."""
    return address is not None and address.startswith((CLIENT, *JOB_SERVER))


def prepare(address: str | None) -> None:
    """Sets the environment that Ray reads when it is imported; the first call counts, and none after the import.

    A Ray that is started here takes 127.0.0.1 for its address and so listens on the loopback interface alone, not, as
    by default, on every interface. A process that joins a cluster takes the outward address, at which other nodes
    reach it, unless the head node listens on loopback alone.

    Args:
        address: Of the cluster that this process will join; None if it starts one.
    """
    global _prepared
    if _prepared or "ray" in sys.modules:
        return
    _prepared = True
    alone = address is None
    if address is not None and not is_job_server(address):
        try:
            alone = is_on_loopback(_local_head() if address == AUTO else address)
        except ClusterError:
            alone = False  # `check_join` raises it again
    os.environ[LOOPBACK] = "0" if alone else "1"
    if address is None or (address == AUTO and has_token()):  # of others' hosts, none is sent this user's token
        os.environ.setdefault(AUTH_MODE, "token")


def check_join(address: str) -> str:
    """Returns ``HOST:PORT`` of the head node of a cluster that this process can join.

    Raises:
        ClusterError: If the address is of another kind, nothing answers there, the token is missing or wrong, or the
            cluster runs another version of Ray.
    """
    if is_job_server(address):
        raise ClusterError(
            f"--address {address}: is reached through jobs, since a search has to run inside its cluster; "
            f"cdn-tune cluster submit --address {address} -- COMMAND runs it there"
        )
    where = find(address)
    _, fault = _ask(address, where, [_STATUS, "status", "--address", where], _STATUS_SECONDS)
    other = _OTHER_RAY.search(fault)
    if other is not None:
        raise other_version(address, {"Ray": (other[1], other[2])})
    if fault:
        raise ClusterError(
            f"--address {address}: no Ray cluster answers there ({fault[-160:]}); name the head node's port (6379 by "
            f"default): {_KINDS}"
        )
    return where


def other_version(address: str, versions: dict[str, tuple[str, str]]) -> ClusterError:
    """Returns the error for a cluster that runs other versions: name to (there, here)."""
    wrong = [f"{name} {there}, here {here}" for name, (there, here) in versions.items() if there != here]
    return ClusterError(
        f"--address {address}: the cluster runs {' and '.join(wrong)}; use the same environment on both sides, or "
        "cdn-tune cluster submit, which runs the command in the cluster's"
    )


def job_server(address: str) -> str:
    """Returns the URL of the job server at ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; a URL as it is.

    Raises:
        ClusterError: If nothing answers there, the token is missing or wrong, or it runs no job server.
    """
    if address.startswith(JOB_SERVER):
        return address
    prefix = CLIENT if address.startswith(CLIENT) else ""
    where = find(address.removeprefix(prefix))
    url, fault = _ask(address, where, [_NAME_JOB_SERVER, prefix + where], _JOB_SERVER_SECONDS)
    if fault:
        raise ClusterError(
            f"--address {address}: this cluster runs no job server ({fault[-160:]}); start its head node with "
            "--include-dashboard=true"
        )
    return url


def find(address: str) -> str:
    """Returns ``HOST:PORT`` of a head node, at which something answers that may be Ray.

    Raises:
        ClusterError: If the address has another form, nothing answers there, or ``auto`` finds no Ray here.
    """
    where = _local_head() if address == AUTO else address
    host, port = _parsed(where)
    try:
        is_grpc = _reach(host, port)
    except (OSError, OverflowError) as error:
        raise ClusterError(f"--address {address}: nothing answers there ({error}); is Ray running?") from None
    if not is_grpc and os.environ.get("RAY_USE_TLS", "0") != "1":
        raise ClusterError(
            f"--address {address}: no Ray cluster answers there (something else does); name the head node's port "
            f"(6379 by default): {_KINDS}"
        )
    return where


def is_on_loopback(where: str) -> bool:
    """Returns whether the head node at ``HOST:PORT`` listens on the loopback interface alone.

    Raises:
        ClusterError: If `where` has another form.
    """
    host, port = _parsed(where)
    if host not in _HERE:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 1))  # sends nothing: the system chooses the interface that leads outside
            outward = str(probe.getsockname()[0])
        except OSError:
            return True  # there is no other interface
    try:
        return outward in _HERE or not _reach(outward, port)
    except OSError:
        return True


def _ask(address: str, where: str, code: list[str], seconds: float) -> tuple[str, str]:
    """Runs Python code that queries a head node; returns its last line, and why there is none.

    Raises:
        ClusterError: If the token is missing or wrong.
    """
    if wants_token() and not has_token():
        raise ClusterError(f"--address {address}: {token_fault()}")
    environment = {name: value for name, value in os.environ.items() if name not in _OVERRULING}
    environment[LOOPBACK] = "0" if is_on_loopback(where) else "1"
    try:
        done = subprocess.run(  # noqa: S603 - this Python
            [sys.executable, "-c", *code], capture_output=True, text=True, timeout=seconds, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return "", f"nothing within {seconds:.0f} s"
    if "InvalidAuthToken" in done.stderr:
        raise ClusterError(f"--address {address}: {token_fault()}")
    last = ((done.stderr if done.returncode else done.stdout).strip().splitlines() or ["no reason given"])[-1]
    return ("", " ".join(last.split())) if done.returncode else (last.strip(), "")


def _local_head() -> str:
    """Returns ``HOST:PORT`` of a head node that this machine belongs to, as Ray documents ``auto``."""
    if (given := os.environ.get("RAY_ADDRESS", AUTO)) not in ("", AUTO):
        return given
    latest = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    named = [latest.read_text("ascii", errors="replace").strip()] if latest.is_file() else []
    for where in (*named, *_of_processes()):
        try:
            if _reach(*_parsed(where)):
                return where
        except (OSError, OverflowError, ClusterError):
            continue
    raise ClusterError(
        "--address auto: no Ray runs on this machine; run it on a node of the cluster, or write HOST:PORT"
    )


def _of_processes() -> Iterator[str]:
    """Yields the addresses of the head nodes that Ray's processes on this machine belong to."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if arguments[0].endswith("/raylet"):
            yield from (each.partition("=")[2] for each in arguments if each.startswith("--gcs-address="))


def _parsed(where: str) -> tuple[str, int]:
    host, colon, port = where.rpartition(":")
    if not colon or not port.isdigit() or not host or "/" in host:
        raise ClusterError(f"--address {where}: write {_KINDS}")
    return host.strip("[]"), int(port)


def _reach(host: str, port: int) -> bool:
    """Returns whether a server uses HTTP/2, as every gRPC server does; raises OSError if nothing listens there."""
    with socket.create_connection((host, port), timeout=_REACH_SECONDS) as connection:
        try:
            connection.sendall(_PREFACE)
            return connection.recv(9)[3:4] == b"\x04"
        except OSError:
            return False


def wants_token() -> bool:
    """Returns whether this process sends and requires a token."""
    return os.environ.get(AUTH_MODE, "").lower() == "token"


def has_token() -> bool:
    """Returns whether there is a token to send."""
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or _token_file().is_file()


def ensure_token() -> None:
    """Makes a token for the Rays that this user starts, unless one exists; raises OSError if it cannot be written.

    Only this user can read its file; Ray itself would make one that all users of the machine can read.
    """
    if not wants_token() or has_token():
        return
    path = _token_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_hex(_AUTH_BYTES))
    try:
        path.hardlink_to(temporary)  # of two that start at once, one makes it
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def token_fault() -> str:
    """Returns what is wrong with the token that a cluster has refused, and what to do."""
    if not wants_token():
        mode = os.environ.get(AUTH_MODE)
        here = f"{AUTH_MODE} is not set" if mode is None else f"{AUTH_MODE}={mode}"
        return f"the cluster asks for a token, and none was sent ({here}); {_AUTH_REMEDY}"
    if not has_token():
        return f"RAY_AUTH_MODE=token, but there is no token; {_AUTH_REMEDY}"
    return f"the cluster refuses this token; {_AUTH_REMEDY}"


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
