"""Where the study of a run lies: as the user names it, as the run folder records it, or in the run folder.

Database clients send passwords that they find by themselves (``PGPASSWORD``, ``~/.pgpass``) to whichever server they
are given. A run folder may be a stranger's, so a server that it alone names is not connected to.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdn_tune.config.secrets import without_secrets
from cdn_tune.errors import RunError
from cdn_tune.training.runs.run_folder import MANIFEST, read_manifest
from cdn_tune.tuning.layout import study_url
from cdn_tune.tuning.storage.check import JOURNAL, MEMORY, SQLITE, storage_url

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

STORAGE = "CDN_TUNE_STORAGE"  # environment variable: the URL of a server, with its password
_HIDDEN = "***"  # in place of a password in a manifest


def storage_of(run: Path, given: str | None = None) -> str:
    """Returns the storage URL of a run's study: as given, else as the run folder records it, else the folder's own.

    Where it is a server, the variable `STORAGE` supplies the password if it names this very server.

    Args:
        run: The run folder.
        given: By the user.

    Raises:
        RunError: If it is a server that the run folder alone names.
    """
    recorded = read_manifest(run).get("storage") if given is None and (run / MANIFEST).exists() else None
    url = given or recorded or study_url(run)
    if not is_server(url):
        return url
    known = os.environ.get(STORAGE, "")
    if known and is_same_storage(known, url):
        return known
    if given is None:
        raise RunError(
            f"{run}: its study is on a server that only the run folder names, {without_secrets(url)}; if you trust it, "
            f"set {STORAGE} to that URL, with the password it takes (or give it as --storage, where a command has that)"
        )
    return _without_hidden(url)


def is_server(url: str) -> bool:
    """Whether a storage is neither a file nor memory."""
    return url != MEMORY and not url.startswith((JOURNAL, SQLITE))


def is_there(url: str) -> bool:
    """Whether a storage may hold a study: a server, or a file with any content."""
    path = Path(url.removeprefix(JOURNAL).removeprefix(SQLITE).partition("?")[0])
    return is_server(url) or (url != MEMORY and path.is_file() and path.stat().st_size > 0)


def is_same_storage(one: str, other: str) -> bool:
    """Whether two URLs name the same storage, whatever their passwords."""
    return one == other or bool(_named(one) == _named(other))


def _named(url: str) -> Any:
    """Returns what a URL names, without passwords and tokens; of one that cannot be parsed, the text."""
    parsed = _parsed(without_secrets(url)) if is_server(url) else None
    if parsed is None:
        return url
    query = {key: value for key, value in parsed.query.items() if value != _HIDDEN}
    return parsed.drivername, parsed.username, parsed.host, parsed.port, parsed.database, query


def _without_hidden(url: str) -> str:
    """Returns a server's URL without a password that was hidden: its client then finds one by itself."""
    parsed = _parsed(url)
    if parsed is None or parsed.password != _HIDDEN:
        return url
    place = parsed.host, parsed.port, parsed.database, parsed.query
    return parsed.create(parsed.drivername, parsed.username, None, *place).render_as_string(hide_password=False)


def _parsed(url: str) -> URL | None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return make_url(storage_url(url))
    except (SQLAlchemyError, ValueError):
        return None
