"""What goes with a job: the files of a working directory, without data, runs, caches and secrets."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cdn_tune.distributed.ray import directory_travel, excluder
from cdn_tune.errors import ConfigError

# Patterns as in a .gitignore; what a .gitignore of the folder names is left out besides.
EXCLUDED = (
    *(".git", ".venv", "venv", "node_modules", "__pycache__", "*.pyc", ".*_cache", "*.egg-info", ".ipynb_checkpoints"),
    *("runs", "*.hdf5", "*.h5", "*.npy", "*.npz", "*.pt", "*.pth", "*.ckpt", "*.safetensors", "glove.*.txt", "*.db"),
    *(".env", ".env.*", "*.pem", "*.key", "id_rsa*", "id_ed25519*", ".netrc", ".pgpass", "auth_token", ".aws", ".ssh"),
)
LIMIT = 100 << 20  # bytes that a dashboard takes
_TOLD = 5
_LOGGER = logging.getLogger(__name__)  # in place of Ray's, which tells of every .gitignore
_PACKAGE = "cdn_tune"


@dataclass(frozen=True)
class Package:
    """A working directory that goes with a job.

    Attributes:
        folder: The directory.
        excludes: Patterns of what stays.
        files: How many go.
        bytes: How large they are.
    """

    folder: Path
    excludes: list[str]
    files: int
    bytes: int


def pack(folder: Path, excludes: Sequence[str] = (), stays: Sequence[Path] = ()) -> Package:
    """Looks what of a working directory goes with a job.

    Args:
        folder: The directory.
        excludes: Patterns of what stays besides `EXCLUDED`, as in a .gitignore.
        stays: Folders that stay if they lie in it: data, runs.

    Raises:
        ConfigError: If it is no folder, or too large to be uploaded; names the largest files.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise ConfigError(f"--working-dir {folder}: no such folder")
    inside = [path.resolve() for path in stays if folder.resolve() in path.resolve().parents]
    patterns = [*EXCLUDED, *excludes, *(f"/{path.relative_to(folder.resolve()).as_posix()}" for path in inside)]
    sizes: dict[Path, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            sizes[path] = path.stat().st_size

    directory_travel(folder, [excluder(folder, patterns)], note, include_gitignore=True, logger=_LOGGER)
    total = sum(sizes.values())
    if total > LIMIT:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:_TOLD]
        named = ", ".join(f"{path.relative_to(folder)} ({sizes[path] / 1e6:.1f} MB)" for path in largest)
        raise ConfigError(
            f"--working-dir {folder}: {total / 1e6:.0f} MB would be uploaded, and {LIMIT / 1e6:.0f} MB can be; the "
            f"largest: {named}; leave them out with --exclude PATTERN, or put data where the nodes read them"
        )
    return Package(folder, patterns, len(sizes), total)


@contextmanager
def unpacked(wheel: Path) -> Iterator[Path]:
    """Unpacks a cdn-tune wheel for the duration; yields the package's folder.

    A wheel of plain Python is a zip file of its modules. It is not installed, since that would install all it depends
    on as well, torch among them: those are the nodes' own.

    Raises:
        ConfigError: If it is no wheel of cdn-tune.
    """
    with TemporaryDirectory(prefix="cdn-tune-") as folder:
        try:
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.startswith(f"{_PACKAGE}/")]
                if f"{_PACKAGE}/__init__.py" not in names:
                    raise ConfigError(f"--wheel {wheel}: is no wheel of cdn-tune; build one: pip wheel --no-deps .")
                archive.extractall(folder, names)
        except (OSError, zipfile.BadZipFile) as error:
            raise ConfigError(f"--wheel {wheel}: cannot be read ({error})") from None
        yield Path(folder) / _PACKAGE
