"""The house: imports point downward only; Ray lives under `distributed` and the Ray engine; decisions read no clock."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "cdn_tune"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each part may import besides itself.
LEAVES = {"errors", "config", "compat", "plugins", "resources"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "compat": {"errors"},
    "plugins": set(),
    "resources": set(),
    "config": {"errors", "plugins", "resources"},
    "moments": LEAVES,
    "model": LEAVES | {"moments"},
    "data": LEAVES | {"moments"},
    "training": LEAVES | {"moments", "model", "data"},
    "distributed": LEAVES | {"data", "training"},
    "tuning": LEAVES | {"data", "training", "distributed"},
    "evaluation": LEAVES | {"moments", "model", "data", "training", "distributed", "tuning"},
    "report": LEAVES | {"moments", "model", "data", "training", "tuning", "evaluation"},
    "cli": LEAVES | {"data", "training", "distributed", "tuning", "evaluation", "report"},
    "api": LEAVES | {"data", "training", "distributed", "tuning", "evaluation", "report"},  # of cli: progress
    "__main__": {"cli"},
}
# The table of model families imports nothing but errors; configurations name the networks' type, and import none.
TABLES = ("cdn_tune.model.families", "cdn_tune.model.family.MomentModel")
RAY_HOMES = ("compat.py", "distributed/", "tuning/engine/ray/", "tuning/planning/", "tuning/search.py")
# Every decision of a search: no Ray, and no time but that of the clock they are given.
DECISIONS = ("tuning/study/", "tuning/checkpoints/", "tuning/engine/door.py", "tuning/engine/virtual/")
DECISIONS += ("tuning/driver.py", "tuning/budget.py", "tuning/progress.py")
# Where JSON is parsed: first a stranger's, and by a file that is copied to a cluster alone; then what this process has
# just written; last recorded cases of published models.
JSON_HOMES = ("data/files.py", "distributed/fetch_protocol.py")
JSON_HOMES += ("tuning/storage/write_through.py", "tuning/storage/journal.py", "report/landscape.py")
JSON_HOMES += ("model/snag/published.py",)


def part_of(path: Path) -> str:
    """The package, or top-level module, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def place_of(path: Path) -> str:
    """The file below the package, such as ``tuning/driver.py``."""
    return path.relative_to(PACKAGE).as_posix()


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
    names = {name for name in imported(path) if name.startswith("cdn_tune.") and not name.startswith(TABLES)}
    if part == "api":
        names -= {name for name in names if name.startswith("cdn_tune.cli.show.")}
    ours = {name.split(".")[1] for name in names} - {"__version__", part}
    assert ours <= ALLOWED[part], f"{part} imports {sorted(ours - ALLOWED[part])}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_ray_stays_at_home(path: Path) -> None:
    if not place_of(path).startswith(RAY_HOMES):
        assert not any(name.split(".")[0] == "ray" for name in imported(path))


@pytest.mark.parametrize("path", [path for path in FILES if place_of(path).startswith(DECISIONS)], ids=place_of)
def test_decisions_know_no_ray_and_no_wall_clock(path: Path) -> None:
    """Neither directly nor through any of our modules: a search is decided alike on every engine."""
    reached = {path}
    waiting = [path]
    while waiting:
        for name in imported(waiting.pop()):
            parts = name.split(".")
            for end in (len(parts), len(parts) - 1):
                file = PACKAGE.parent.joinpath(*parts[:end]).with_suffix(".py")
                if parts[0] == "cdn_tune" and file.exists() and file not in reached:
                    reached.add(file)
                    waiting.append(file)
    assert not [place_of(file) for file in reached if place_of(file).startswith(RAY_HOMES)]
    code = path.read_text(encoding="utf-8")
    assert not re.search(r"\btime\.(time|monotonic|perf_counter|sleep)\b|datetime\.now|from time import", code)


def test_json_of_strangers_is_parsed_in_one_place() -> None:
    """`parse_json` refuses what Python's parser fails on in other ways, such as values nested deeply."""
    found = {place_of(path) for path in FILES if re.search(r"\bjson\.loads?\b", path.read_text(encoding="utf-8"))}
    assert found == set(JSON_HOMES)


def test_no_room_is_crowded() -> None:
    """At most twelve files in a folder of `tuning` and `training`."""
    rooms = Counter(
        path.parent for path in FILES if part_of(path) in ("tuning", "training") and path.stem != "__init__"
    )
    assert {str(room): count for room, count in rooms.items() if count > 12} == {}


def test_every_part_is_known() -> None:
    assert {part_of(path) for path in FILES} - {"__init__"} == set(ALLOWED)
