"""Where the experiments and search spaces that come with cdn-tune lie."""

from pathlib import Path

from cdn_tune.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]


def roots() -> list[Path]:
    """Folders that hold ``experiments/`` and ``search_spaces/``: a checkout's root, or inside an installed wheel."""
    return [root for root in (_PACKAGE.parent, _PACKAGE / "shipped") if (root / "experiments").is_dir()]


def find(path: str | Path, kind: str) -> Path:
    """Finds a configuration file as given, else among the shipped ones.

    Args:
        path: A path, with or without ``.yaml``; relative to the working folder, or to the shipped `kind` folder.
        kind: ``experiments`` or ``search_spaces``.

    Raises:
        ConfigError: If there is no such file, naming what is shipped.
    """
    asked = Path(path)
    for base in (Path(), *roots(), *(root / kind for root in roots())):
        for candidate in (base / asked, base / f"{asked}.yaml"):
            if candidate.is_file():
                return candidate
    if asked.is_dir():
        raise ConfigError(f"{asked}: is a folder; name the YAML file in it")
    shipped = sorted({str(file.relative_to(root)) for root in roots() for file in (root / kind).rglob("*.yaml")})
    raise ConfigError(f"{asked}: no such file; shipped are {', '.join(shipped) or 'none'}")
