"""The house: imports point downward only, and Ray lives under `distributed` and `tuning`."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "cdn_tune"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each part may import besides itself.
LEAVES = {"errors", "config"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "moments": {"errors"},
    "model": LEAVES | {"moments"},
    "data": LEAVES | {"moments"},
    "training": LEAVES | {"moments", "model", "data"},
    "distributed": LEAVES | {"training"},
    "tuning": LEAVES | {"data", "training", "distributed"},
    "evaluation": LEAVES | {"moments", "model", "data", "training", "distributed"},
    "report": LEAVES | {"moments", "model", "data", "training", "tuning", "evaluation"},
    "console": LEAVES | {"data", "training", "distributed", "tuning", "evaluation", "report"},
    "cli": LEAVES | {"console"},
    "__main__": {"cli"},
}
RAY_HOMES = {"distributed", "tuning"}


def part_of(path: Path) -> str:
    """The package, or top-level module, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Names of all modules a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("cdn_tune.")} - {"__version__", part}
    assert ours <= ALLOWED[part], f"{part} imports {sorted(ours - ALLOWED[part])}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_ray_stays_at_home(path: Path) -> None:
    if part_of(path) not in RAY_HOMES:
        assert not any(name.split(".")[0] == "ray" for name in imported(path))


def test_every_part_is_known() -> None:
    assert {part_of(path) for path in FILES} - {"__init__"} == set(ALLOWED)
