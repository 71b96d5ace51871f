"""The files that are uploaded with a job: those of a working directory, without data, runs, caches and secrets."""

import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pathspec import GitIgnoreSpec

from cdn_tune.errors import ConfigError

# Patterns as in a .gitignore; what an `_IGNORING` file in the folder or below names is left out besides.
EXCLUDED = (
    *(".git", ".venv", "venv", "node_modules", "__pycache__", "*.pyc", ".*_cache", "*.egg-info", ".ipynb_checkpoints"),
    *("runs", "*.hdf5", "*.h5", "*.npy", "*.npz", "*.pt", "*.pth", "*.ckpt", "*.safetensors", "glove.*.txt", "*.db"),
    *(".env", ".env.*", "*.pem", "*.key", "id_rsa*", "id_ed25519*", ".netrc", ".pgpass", "auth_token", ".aws", ".ssh"),
)
LIMIT = 100 << 20  # bytes that a dashboard takes
_IGNORING = (".gitignore", ".rayignore")
_NAMED = 5
_PACKAGE = "cdn_tune"


@dataclass(frozen=True)
class Package:
    """The files of a working directory that are uploaded with a job."""

    folder: Path
    sizes: dict[str, int]  # bytes of each file by its path relative to the folder

    @property
    def bytes(self) -> int:
        """Their size in all."""
        return sum(self.sizes.values())


def pack(folder: Path, excludes: Sequence[str] = (), stays: Sequence[Path] = ()) -> Package:
    """Returns the files of a working directory that are uploaded with a job.

    Args:
        folder: The directory.
        excludes: Patterns of what is left out besides `EXCLUDED`, as in a .gitignore.
        stays: Folders that are left out if they lie in it: data, runs.

    Raises:
        ConfigError: If it is no folder, or too large to be uploaded; names the largest files.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise ConfigError(f"--working-dir {folder}: no such folder")
    inside = [path.resolve() for path in stays if folder.resolve() in path.resolve().parents]
    patterns = [*EXCLUDED, *excludes, *(f"/{path.relative_to(folder.resolve()).as_posix()}" for path in inside)]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder, patterns)}
    package = Package(folder, sizes)
    if package.bytes > LIMIT:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:_NAMED]
        named = ", ".join(f"{name} ({sizes[name] / 1e6:.1f} MB)" for name in largest)
        raise ConfigError(
            f"--working-dir {folder}: {package.bytes / 1e6:.0f} MB would be uploaded, and {LIMIT / 1e6:.0f} MB can be; "
            f"the largest: {named}; leave them out with --exclude PATTERN, or put data where the nodes read them"
        )
    return package


@contextmanager
def staged(package: Package) -> Iterator[Path]:
    """Yields a temporary folder with a copy of the files, which is uploaded as it is."""
    with TemporaryDirectory(prefix="cdn-tune-") as folder:
        for name in package.sizes:
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(package.folder / name, target)
        yield Path(folder)


def _files(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    """Yields the files under a folder that no pattern and no ignoring file in it or below excludes."""
    rules = [(folder, GitIgnoreSpec.from_lines(patterns))]
    seen: set[Path] = set()  # a link may lead to a folder above it
    for root, folders, files in os.walk(folder, followlinks=True):
        here = Path(root)
        rules = [(base, spec) for base, spec in rules if here.is_relative_to(base)]
        rules += [(here, GitIgnoreSpec.from_lines(_lines(here / name))) for name in _IGNORING if name in files]

        def goes(name: str, ending: str, here: Path = here, rules: list[tuple[Path, GitIgnoreSpec]] = rules) -> bool:
            path = here / name
            return not any(spec.match_file(path.relative_to(base).as_posix() + ending) for base, spec in rules)

        folders[:] = sorted(name for name in folders if goes(name, "/") and (here / name).resolve() not in seen)
        seen |= {(here / name).resolve() for name in folders}
        yield from (here / name for name in sorted(files) if goes(name, "") and (here / name).is_file())


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8", errors="replace").splitlines()


@contextmanager
def unpacked(wheel: Path) -> Iterator[Path]:
    """Yields a temporary folder with the package of a cdn-tune wheel, which is a zip file of its modules.

    It is not installed, since that would install all it depends on as well, torch among them: the nodes have their own.

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
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ConfigError(f"--wheel {wheel}: cannot be read ({error})") from None
        yield Path(folder) / _PACKAGE
