"""The token that a Ray cluster asks for: where it is read from, how one is made, and the message for a refused one.

Ray reads RAY_AUTH_TOKEN, then the file named by RAY_AUTH_TOKEN_PATH, then ``~/.ray/auth_token``; it sends what it finds
if RAY_AUTH_MODE is ``token``.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

REMEDY = (
    "set RAY_AUTH_MODE=token, and give the cluster's token in RAY_AUTH_TOKEN_PATH=FILE or ~/.ray/auth_token "
    "(on the head node: ray get-auth-token)"
)
MODE = "RAY_AUTH_MODE"
_BYTES = 32


def wants_token() -> bool:
    """Returns whether this process sends and asks for a token."""
    return os.environ.get(MODE, "").lower() == "token"


def has_token() -> bool:
    """Returns whether there is a token to send."""
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or _file().is_file()


def ensure_token() -> None:
    """Makes a token for the Rays that this user starts, if there is none, in a file that only this user can read.

    Ray would make it itself, readable for all users of the machine.

    Raises:
        OSError: If it cannot be written.
    """
    if not wants_token() or has_token():
        return
    path = _file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_hex(_BYTES))
    try:
        path.hardlink_to(temporary)  # of two that start at once, one makes it
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def token_fault() -> str:
    """Returns what is wrong with the token that a cluster has refused, and what to do."""
    if not wants_token():
        return f"the cluster asks for a token, and none was sent; {REMEDY}"
    if not has_token():
        return f"RAY_AUTH_MODE=token, but there is no token; {REMEDY}"
    return f"the cluster refuses this token; {REMEDY}"


def _file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
