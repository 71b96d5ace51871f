"""A run folder: its lock, its configuration, and the manifest of what it was made of."""

import platform
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from cdn_tune import __version__, plugins
from cdn_tune.config import COMPUTING, DATA_PATHS, Experiment, SearchSpace, build, keys
from cdn_tune.config.check import FAMILY
from cdn_tune.config.load_search import WRITTEN
from cdn_tune.config.secrets import without_secrets
from cdn_tune.config.yaml import dump, read_mapping
from cdn_tune.data.files import brief, clear_left, read_json
from cdn_tune.data.mark import Mark
from cdn_tune.data.videos.making import from_plain
from cdn_tune.errors import ConfigError, RunError
from cdn_tune.training.object_store.lease import LOCK, Lease
from cdn_tune.training.object_store.sync import MANIFEST, RunSync, push_run
from cdn_tune.training.object_store.working_copy import place_of, shown
from cdn_tune.training.runs.files import write_json, write_text

__all__ = ["LOCK", "MANIFEST"]
EXPERIMENT = "experiment.yaml"
SPACE = "search_space.yaml"
SCHEMA = 1
_SHOWN = 80  # characters of a value
_PACKAGES = ("torch", "torchtext", "numpy", "h5py", "ray", "optuna")


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Creates the run folder and holds it for one command; what killed processes left half written in it goes.

    Raises:
        RunError: If it cannot be written or another process holds it.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file; choose another --run folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).exists() and not (folder / LOCK).exists():
        raise RunError(f"{folder}: is not empty and not a run folder; choose another --run folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise RunError(
            f"{shown(folder)}: is in use by another cdn-tune; wait for it, or choose another --run folder"
        ) from None
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror}); choose another --run folder") from None
    try:
        clear_left(folder)
        with _leased(folder):
            yield folder
    finally:
        lock.release()


@contextmanager
def _leased(folder: Path) -> Iterator[None]:
    """Holds a run on an object store there, too; fetches it first, and uploads it in the end."""
    place = place_of(folder)
    if place is None:
        yield
        return
    place.store.check()
    with Lease(place.store):
        RunSync(place).pull(models=True, to_work=True)
        try:
            yield
        except BaseException:
            with suppress(RunError):  # the first error is reported
                RunSync(place).push()
            raise
        RunSync(place).push()


def claim(folder: Path, manifest: dict[str, Any], configurations: dict[str, dict[str, Any]]) -> bool:
    """Writes a run's configuration into a locked folder, or checks that the folder holds just this run.

    Args:
        folder: The run folder.
        manifest: Written if the folder is new.
        configurations: Plain configurations by file name, ``experiment.yaml`` among them.

    Returns:
        Whether the folder already held this run.

    Raises:
        RunError: If it holds another kind of run, another configuration or a run on other data; names the first
            differing key, or the files. Where both manifests tell the data's content, their paths may differ.
    """
    if (folder / MANIFEST).exists():
        held = read_manifest(folder)
        if held["kind"] != manifest["kind"]:
            raise RunError(
                f"{folder}: holds a {held['kind']} run, not a {manifest['kind']} run; choose another --run folder"
            )
        facts, facts_now = held.get("data", {}), manifest.get("data", {})
        beside = DATA_PATHS if facts and facts_now else ()
        for name, values in configurations.items():
            difference = first_difference(_held(folder / name, values), values, beside)
            if difference:
                key, remedy = difference.partition(" ")[0], "choose another --run folder"
                if name == SPACE and key.partition(".")[0] not in WRITTEN:
                    remedy = f"go on with --set {key}=VALUE as it is there, or {remedy}"
                raise RunError(f"{folder / name}: holds another run ({difference}); {remedy}")
        changed = changed_files(facts, facts_now)
        if changed:
            raise RunError(
                f"{folder}: its data, then in {facts.get('root')}, have changed since it began ({', '.join(changed)}); "
                "choose another --run folder"
            )
        return True
    for name, values in configurations.items():
        write_text(folder / name, dump(values))
    write_json(folder / MANIFEST, manifest)
    push_run(folder)
    return False


def _held(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Returns a run's plain configuration; keys of `asked` that its version did not have yet are at their defaults."""
    held = read_mapping(path)
    kinds: dict[str, type[Experiment] | type[SearchSpace]] = {EXPERIMENT: Experiment, SPACE: SearchSpace}
    if path.name in kinds:
        with suppress(ConfigError):
            plain = build(kinds[path.name], held, str(path)).plain()
            return {key: value for key, value in plain.items() if key in held or key in asked}
    return held


def changed_files(held: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns the names of data files that only one of two fingerprints has, or with other content, in any folders."""
    if not held.get("files") or not now.get("files"):
        return []
    there, here = (
        {
            **data["files"]["annotations"],
            "features": data["files"]["features"],
            **{role: data["files"][role] for role in ("word_vectors", "tokens") if role in data["files"]},
        }
        for data in (held, now)
    )
    content = ("size", "sha256", "sampled_sha256")
    return [
        {**here, **there}[name].get("name", name)
        for name in {**there, **here}
        if name not in there or name not in here or any(there[name].get(key) != here[name].get(key) for key in content)
    ]


def first_difference(held: dict[str, Any], asked: dict[str, Any], beside: Collection[str] = ()) -> str | None:
    """Returns ``key is VALUE there, VALUE here`` for the first differing key, or None; the model's family comes first.

    Keys in `beside` may differ, in an experiment and among the overrides of a search space, as may `COMPUTING`.
    """
    return next(differences(held, asked, beside), None)


def differences(held: dict[str, Any], asked: dict[str, Any], beside: Collection[str] = ()) -> Iterator[str]:
    """Yields what `first_difference` returns, for every differing key."""
    there, here, may_differ = keys.flatten(held), keys.flatten(asked), {*beside, *COMPUTING}
    for key in sorted(there.keys() | here.keys(), key=lambda key: (key != FAMILY, key)):
        if there.get(key) != here.get(key) and key.removeprefix("overrides.") not in may_differ:
            yield f"{key} is {there.get(key)!s:.{_SHOWN}} there, {here.get(key)!s:.{_SHOWN}} here"


def describe_run(kind: str, experiment: Experiment, data: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest of a run: what it is made of, so that it can be made again.

    Args:
        kind: ``train`` or ``search``.
        experiment: The resolved experiment (of a search: its base).
        data: Fingerprint of the data.
    """
    return {
        "schema": SCHEMA,
        "kind": kind,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cdn_tune": __version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in _PACKAGES} | plugins.packages(),
        "command": [Path(sys.argv[0]).name, *map(without_secrets, sys.argv[1:])],
        "seed": experiment.seed,
        "experiment": experiment.plain(),
        "data": data,
    }


def git_commit() -> str | None:
    """Returns the commit of the checkout that cdn-tune runs from, with ``+changes`` if it is modified; else None."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()  # noqa: S603


class _Files(BaseModel):
    """What a manifest says of the files of its data."""

    annotations: dict[str, dict[str, Any]]
    features: dict[str, Any]
    word_vectors: dict[str, Any] = {}
    tokens: dict[str, Any] = {}


def _is_making(said: dict[str, Any]) -> dict[str, Any]:
    from_plain(said)
    return said


class _Data(BaseModel):
    files: _Files | None = None
    planted: Mark = False
    making: Annotated[dict[str, Any], AfterValidator(_is_making)] | None = None


class _Manifest(BaseModel):
    """What is read of a manifest; it may hold more."""

    kind: Literal["train", "search"]
    data: _Data = _Data()
    experiment: dict[str, Any] = {}
    storage: str | None = None
    run_id: str | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    start: dict[str, str] | None = None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads a run's manifest.

    Raises:
        RunError: If the folder is no run folder or its manifest is damaged.
    """
    path = folder / MANIFEST
    if folder.is_file():
        raise RunError(f"{folder}: is a file; name the run folder")
    if not folder.is_dir():
        raise RunError(f"{shown(folder)}: no such run folder")
    if not path.exists():
        raise RunError(f"{shown(folder)}: is not a run folder (no {MANIFEST}); name a folder made by train or search")
    try:
        manifest = read_json(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({brief(error)}); restore it, or name another run folder") from None
    try:
        _Manifest.model_validate(manifest, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = first["msg"].partition(" or instance of")[0]
        reason = f"{where}: {what}" if where else what
        raise RunError(f"{path}: is not a cdn-tune manifest ({reason}); name another run folder") from None
    return dict(manifest)


def record_in_manifest(folder: Path, key: str, value: Any) -> None:
    """Sets an entry of a run's manifest; a folder without one, such as a search's trial's, stays without."""
    if (folder / MANIFEST).exists():
        write_json(folder / MANIFEST, {**read_manifest(folder), key: value})
