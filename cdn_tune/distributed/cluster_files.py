"""The files with which a cluster is started, for users who have installed cdn-tune and have no checkout.

Those in ``cluster/`` copy the checkout to every machine and install it there. Here what they copy becomes what pip
installs, and names and versions are filled in.
"""

import difflib
import hashlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cdn_tune import __version__
from cdn_tune.data.files import parse_json
from cdn_tune.errors import ConfigError, RunError
from cdn_tune.resources import ROOT

KINDS: dict[str, tuple[str, ...]] = {  # files and folders in cluster/
    "slurm": ("slurm",),
    "kubernetes": ("Dockerfile", "Dockerfile.dockerignore", "kubernetes"),
    "aws": ("aws.yaml",),
    "gcp": ("gcp.yaml",),
    "azure": ("azure.yaml",),
    "on-premise": ("on-premise.yaml",),
}
_CONSTRAINTS = "constraints.txt"
_WHEEL = re.compile(r"cdn_tune-([\w.+!]+)-py3-none-any\.whl")
_BLANK = re.compile(r"REPLACE_[A-Z0-9_]*[A-Z0-9]")
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def cluster_files(kind: str, folder: Path, wheel: Path | None = None) -> dict[Path, bytes]:
    """Returns the files of a kind of cluster, filled in, by the paths they have in a folder.

    Args:
        kind: One of `KINDS`.
        folder: Where they shall lie; paths in them are of there.
        wheel: A wheel of this version, a copy of which machines install; without it they install this version from
            the package index.

    Raises:
        ConfigError: If there is no such kind, the folder's name cannot stand in a file, or it is no such wheel.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"cluster init {kind}: no such kind; {hint}there are {', '.join(KINDS)}")
    if not str(folder).isprintable():
        raise ConfigError(f"{str(folder)!r}: control characters cannot stand in a file's comments; name another folder")
    files: dict[Path, bytes] = {}
    if kind != "slurm":
        files[folder / _CONSTRAINTS] = _constraints().encode()
        if wheel is not None:
            files[folder / wheel.name] = _read(wheel)
    elif wheel is not None:
        raise ConfigError(f"--wheel {wheel}: jobs on Slurm run in the environment that is installed; leave it out")
    for name in KINDS[kind]:
        source = ROOT / "cluster" / name
        for file in [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file()):
            place = file.relative_to(ROOT / "cluster")
            text = _filled(place, file.read_text("utf-8"), folder, wheel.name if wheel else None)
            files[folder / place] = text.encode()
    return files


def installed_wheel() -> Path | None:
    """Returns the wheel that this cdn-tune was installed from, if it was from a file that is still there as it was."""
    try:
        origin = parse_json(_origin() or "{}")
        path = Path(unquote(urlsplit(origin["url"]).path))
        if _WHEEL.fullmatch(path.name) and origin["archive_info"]["hashes"]["sha256"] == _sha256(path):
            return path
    except (KeyError, TypeError, ValueError, OSError):  # of a folder, of the index, or the file has gone
        pass
    return None


def is_from_index() -> bool:
    """Returns whether this cdn-tune was installed from a package index, and not from a wheel or a folder."""
    return _origin() is None


def _origin() -> str | None:
    """Returns what pip has recorded of an installation that is not from an index (PEP 610)."""
    try:
        return metadata.distribution("cdn-tune").read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # only the modules are there
        return ""


def write_new(files: Mapping[Path, bytes]) -> list[Path]:
    """Writes files, never over one that is there; returns those that it wrote, which leaves out equal ones.

    Raises:
        RunError: If a file with other content is there, in which case none is written, or one cannot be written.
    """
    missing = [path for path, content in files.items() if not _is_there(path, content)]
    written = []
    for path in missing:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                try:
                    file.write(files[path])
                    file.flush()
                except BaseException:
                    path.unlink()
                    raise
        except FileExistsError:
            if path.parent.is_dir() and _is_there(path, files[path]):  # another command has just written it
                continue
            raise RunError(f"{path.parent}: is a file, not a folder; name another folder") from None
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            raise RunError(f"{path}: {reason}; make room there, or name a folder that you may write to") from None
        written.append(path)
    return written


def blanks(files: Mapping[Path, bytes]) -> dict[Path, list[str]]:
    """Returns what is left for the user to fill in, by file."""
    texts = {path: content.decode() for path, content in files.items() if path.suffix != ".whl"}
    return {path: sorted(names) for path, text in texts.items() if (names := set(_BLANK.findall(text)))}


def _is_there(path: Path, content: bytes) -> bool:
    """Returns whether a file is there with this content; raises `RunError` if something else is."""
    try:
        if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
            return True
        there = path.is_symlink() or path.exists()
    except OSError:  # not a folder, or not ours to read: writing tells why
        return False
    if there:
        raise RunError(f"{path}: is there already, and is never written over; name another folder, or move it away")
    return False


def _read(wheel: Path) -> bytes:
    found = _WHEEL.fullmatch(wheel.name)
    if found is None:
        raise ConfigError(f"--wheel {wheel}: is no wheel of cdn-tune, cdn_tune-{__version__}-py3-none-any.whl")
    if found[1] != __version__:
        raise ConfigError(f"--wheel {wheel}: is of version {found[1]}, and this is cdn-tune {__version__}")
    try:
        return wheel.read_bytes()
    except OSError as error:
        raise ConfigError(f"--wheel {wheel}: cannot be read ({error.strerror})") from None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _constraints() -> str:
    """Returns the tested versions, of Ray the one that is installed here: a cluster's Rays are all of one version."""
    return _changed((ROOT / _CONSTRAINTS).read_text("utf-8"), r"(?m)^ray==\S+", f"ray=={metadata.version('ray')}")


def _filled(place: Path, text: str, folder: Path, wheel: str | None) -> str:
    """Returns the text of a file with what is known here in its place."""
    shown = shlex.quote(str(folder))
    name = "cdn-tune" if wheel is None else wheel
    version = f"=={__version__}" if wheel is None else ""
    if place.parts[0] == "slurm":
        prefix = re.sub(r'([\\"$`}])', r"\\\1", sys.prefix)
        text = _changed(text, r"\$SLURM_SUBMIT_DIR/\.venv", lambda _: prefix)
        text = _changed(text, r"# Submit from the checkout: .*\n", "")
    elif place.name == "Dockerfile":
        text = _changed(text, r" From the checkout:", "")
        text = _changed(text, r"--file cluster/Dockerfile (.*) \.\n", lambda found: f"{found[1]} {shown}\n")
        text = _changed(text, r"(COPY .*\n)+(?=RUN .* --constraint)", f"COPY {wheel} ./\n" if wheel else "")
        text = _changed(text, r'"\.(\[.*\])"', rf'"{"./" if wheel else ""}{name}\1{version}"')
        text = _changed(text, r"python:(3\.\d+)\.\d+-slim", lambda found: _image(found[0], found[1]))
        text = _changed(text, r"must agree on Python 3\.\d+", f"must agree on Python {_PYTHON}")
    elif place.name == "Dockerfile.dockerignore":
        text = _changed(text, r"(!.*\n)+", "".join(f"!{each}\n" for each in (_CONSTRAINTS, wheel) if each))
    elif place.suffix == ".yaml" and "rayVersion" in text:
        text = _changed(text, r"rayVersion: \S+", f"rayVersion: {metadata.version('ray')}")
    elif len(place.parts) == 1:  # of Ray's launcher
        paths = {each: json.dumps(str(folder.absolute() / each)) for each in (_CONSTRAINTS, wheel) if each}
        mounts = "".join(f'  "~/cdn-tune/{each}": {path}\n' for each, path in paths.items())
        text = _changed(text, r'(  "~/cdn-tune/.*\n)+', lambda _: mounts)
        text = _changed(text, "The package and what it is installed from", "What cdn-tune is installed with")
        where = "$HOME/cdn-tune/" if wheel else ""
        text = _changed(text, r'"\$HOME/cdn-tune(\[.*?\])"', rf'"{where}{name}\1{version}"')
        text = re.sub(r" +# from the checkout", "", text)
    return re.sub(r"(?<![\w/.])cluster/(?=[\w-]+[./])", lambda _: f"{shown}/", text)


def _image(image: str, python: str) -> str:
    """Returns the image of Python with our minor version, on which driver and nodes must agree."""
    return image if python == _PYTHON else f"python:{_PYTHON}-slim"


def _changed(text: str, pattern: str, becomes: str | Callable[[re.Match[str]], str]) -> str:
    """Returns the text with all that matches replaced, of which there has to be something."""
    changed, count = re.subn(pattern, becomes, text)
    assert count, f"{pattern} is not in the file"  # noqa: S101 - a file of ours was edited, and this was not
    return changed
