"""The token that a Ray cluster asks for: where it is looked for, how ours is made, what is told of a refused one.

Ray looks in RAY_AUTH_TOKEN, then in the file named by RAY_AUTH_TOKEN_PATH, then in ``~/.ray/auth_token``.
"""

from __future__ import annotations

import os
from pathlib import Path

from cdn_tune.distributed.ray import AuthenticationTokenLoader, generate_new_authentication_token

REMEDY = (
    "set RAY_AUTH_MODE=token, and give the cluster's token in RAY_AUTH_TOKEN_PATH=FILE or ~/.ray/auth_token "
    "(on the head node: ray get-auth-token)"
)


def ensure_token() -> None:
    """Makes a token for the Rays that this user starts, if there is none, in a file that nobody else can read.

    Ray would make it itself, readable for all users of the machine.

    Raises:
        OSError: If it cannot be written.
    """
    loader = AuthenticationTokenLoader.instance()
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or loader.has_token(ignore_auth_mode=True):
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(generate_new_authentication_token())
    try:
        path.hardlink_to(temporary)  # of two that start at once, one makes it
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    loader.reset_cache()


def token_fault() -> str:
    """Returns what is wrong with the token that a cluster has refused, and what to do."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return f"the cluster asks for a token, and none was sent; {REMEDY}"
    return f"the cluster refuses this token; {REMEDY}"
