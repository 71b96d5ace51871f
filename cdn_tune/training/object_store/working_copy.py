"""A run on an object store and its working copy on this machine: which belongs to which.

Everything works on the working copy, a folder in the cache; `sync`, `trial_sync` and `lease` keep it and the store
together. A file beside the working copy names the store, so that a path is all that need be passed on. Elsewhere than
in the cache such a file may be a stranger's, and is not read.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from cdn_tune.data.cache import user_cache
from cdn_tune.data.files import read_json
from cdn_tune.errors import ConfigError, RunError
from cdn_tune.training.object_store.store import ObjectStore, open_store
from cdn_tune.training.runs.files import write_json

MARKER = "home.json"
POSITION = ".position.json"  # in a trial's folder: which state its last checkpoint holds
TRAINING_LOCK = ".training"  # held by the process that trains in a folder, against others on its machine
_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)  # a Path has made one slash of two
_INSIDE = "#"
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_SETTINGS = {"s3": {"endpoint_override", "scheme", "region"}, "gs": {"endpoint_override", "scheme"}}
_caches: set[Path] = set()  # in which this process has made working copies


@dataclass(frozen=True)
class Place:
    """A folder or file of a working copy."""

    store: ObjectStore  # the run's folder on the store
    root: Path  # the run's working copy
    name: str  # its path below either; empty for the run folder itself

    def named(self, name: str | Path) -> str:
        """Returns the store's name of a file or folder in this folder."""
        return f"{self.name}/{name}" if self.name else str(name)


def url_of(run: Path | str) -> str | None:
    """Returns the URL of a run on an object store, in one form; None if it is a local path.

    An endpoint set in the environment becomes part of it, so that it means the same on every machine.

    Args:
        run: As the user wrote it, also if it has been a `Path` meanwhile.

    Raises:
        ConfigError: If the URL cannot be a run's, or holds credentials.
    """
    found = _URL.fullmatch(str(run))
    if found is None:
        return None
    scheme, (rest, _, query) = found[1].lower(), found[2].partition("?")
    authority, _, path = rest.partition("/")
    if ":" in authority.rpartition("@")[0] or ("@" in authority and scheme in ("s3", "gs", "gcs")):
        place = f"{scheme}://{authority.rpartition('@')[2]}/{path}"
        raise ConfigError(
            f"--run {place}: credentials do not belong in a URL, where they would be recorded; set AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY (or what your store's tools read), or give the machine a role"
        )
    shown = f"{scheme}://{rest}"
    if scheme not in _SCHEMES:
        raise ConfigError(f"--run {shown}: no such store; write s3://, gs:// or abfs://, or a folder's path")
    path = "/".join(part for part in path.split("/") if part)
    if not path or not authority:
        raise ConfigError(f"--run {shown}: names no folder in a bucket; write {scheme}://BUCKET/NAME")
    if ".." in path.split("/"):
        raise ConfigError(f"--run {shown}: write it without ..")
    settings = dict(parse_qsl(re.sub(r"=(https?):/+", r"=\1://", query)))
    unknown = settings.keys() - _SETTINGS.get({"gcs": "gs"}.get(scheme, scheme), set())
    if unknown:  # keys and tokens among them
        known = ", ".join(sorted(_SETTINGS.get(scheme, ()))) or "none"
        raise ConfigError(f"--run {shown}: {', '.join(sorted(unknown))} cannot be set in the URL; what can: {known}")
    if scheme == "s3":
        _settle_endpoint(settings)
    query = urlencode(sorted(settings.items()))
    return f"{scheme}://{authority}/{path}" + (f"?{query}" if query else "")


def _settle_endpoint(settings: dict[str, str]) -> None:
    """Names the endpoint as host and port, and its scheme."""
    endpoint = settings.get("endpoint_override") or next(filter(None, map(os.environ.get, _ENDPOINTS)), None)
    if endpoint is None:
        return
    scheme, separator, host = endpoint.partition("://")
    settings["endpoint_override"] = (host if separator else endpoint).rstrip("/")
    if separator:
        settings["scheme"] = scheme


def working_copy(run: Path | str) -> Path:
    """Returns the folder on this machine in which a run is worked on: itself, or one in the cache; nothing is fetched.

    Args:
        run: A path, a URL, or what `portable` has made of a folder.

    Raises:
        ConfigError: If it is a URL that cannot be a run's.
    """
    text, _, inside = str(run).partition(_INSIDE) if _URL.fullmatch(str(run)) else (str(run), "", "")
    url = url_of(text)
    if url is None:
        return Path(run).absolute()
    name = url.partition("?")[0].rpartition("/")[2]
    root = _copies() / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    root.mkdir(parents=True, exist_ok=True)
    _caches.add(root.parents[1].resolve())
    if not (marker := root.parent / MARKER).exists():
        write_json(marker, {"url": url})
    return root / inside


def place_of(path: Path) -> Place | None:
    """Returns the place of a path in a working copy; None if it is in none.

    Raises:
        RunError: If what names the working copy's store is damaged.
    """
    for folder in (path, *path.parents):
        marker = folder.parent / MARKER
        if marker.is_file() and marker.parents[1].resolve() in {_copies().resolve(), *_caches}:
            try:
                url = str(read_json(marker)["url"])
            except (OSError, ValueError, KeyError, TypeError):
                raise RunError(f"{marker}: is damaged; delete {folder.parent}, and name the run by its URL") from None
            name = path.relative_to(folder).as_posix()
            return Place(open_store(url), folder, "" if name == "." else name)
    return None


def _copies() -> Path:
    """Returns the folder of all working copies."""
    return user_cache().absolute() / "runs"


def portable(folder: Path) -> str:
    """Returns a name of a folder that is valid on every machine: its path, or the run's URL and its name there."""
    place = place_of(folder)
    if place is None:
        return str(folder)
    return place.store.url + (f"{_INSIDE}{place.name}" if place.name else "")


def delete_remote(folder: Path) -> None:
    """Deletes the store's copy of a folder; no-op if the run is on no store."""
    place = place_of(folder)
    if place is not None and place.name:
        place.store.delete_folder(place.name)


def shown(path: Path) -> str:
    """Returns a path as it is printed: as it is, or as the URL of its copy on the store."""
    place = place_of(path)
    return str(path) if place is None else f"{place.store.shown}/{place.name}".rstrip("/")
