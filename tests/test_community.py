"""CITATION.cff, CONTRIBUTING.md, the issue templates and docs/how-to/runs.md say what is so."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdn_tune import __version__
from cdn_tune.evaluation.runs import COLUMNS
from cdn_tune.model.families import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
# Of the Citation File Format 1.2.0: what it requires, and what it knows among what is used here.
REQUIRED = {"cff-version", "message", "title", "authors"}
KNOWN = REQUIRED | {"type", "version", "license", "keywords", "references"}
TYPES = {"article", "conference-paper"}
REFERENCE = {"type", "title", "authors", "notes", "journal", "volume", "start", "end", "year", "doi", "identifiers"}
REFERENCE |= {"collection-title", "conference"}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as hosts of code make them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_citation_is_in_its_format() -> None:
    citation: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation.keys() >= REQUIRED
    assert citation.keys() <= KNOWN
    assert (citation["cff-version"], citation["type"], citation["license"]) == ("1.2.0", "software", "MIT")
    assert citation["version"] == __version__
    named = set()
    for paper in citation["references"]:
        assert paper.keys() <= REFERENCE
        assert paper["type"] in TYPES
        assert all(author.keys() == {"given-names", "family-names"} for author in paper["authors"])
        assert isinstance(paper["year"], int)
        assert paper["start"] < paper["end"]
        assert "doi" not in paper or re.fullmatch(r"10\.\d{4,9}/\S+", paper["doi"])
        named |= set(re.findall(r"`(\w+)`", paper["notes"]))
    assert named == set(FAMILIES)


def test_templates_ask_for_the_report() -> None:
    found = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in TEMPLATES}
    assert found.keys() == {"bug", "feature", "config"}
    for name in ("bug", "feature"):
        assert found[name].keys() >= {"name", "description", "body"}
        ids = [part["id"] for part in found[name]["body"]]
        assert len(set(ids)) == len(ids)
    report = next(part for part in found["bug"]["body"] if part["id"] == "report")
    assert "cdn-tune report-bug" in report["attributes"]["label"]
    assert report["validations"]["required"] is True


@pytest.mark.parametrize(
    "path", [ROOT / "CONTRIBUTING.md", ROOT / "CITATION.cff", *TEMPLATES], ids=lambda path: path.name
)
def test_no_address_is_named_that_may_not_exist(path: Path) -> None:
    assert "://" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/how-to/runs.md", "docs/reference/dependencies.md"])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_page_has_every_key() -> None:
    page = (ROOT / "docs/how-to/runs.md").read_text(encoding="utf-8")
    table = "".join(line for line in page.splitlines(keepends=True) if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()))) == set(COLUMNS)
