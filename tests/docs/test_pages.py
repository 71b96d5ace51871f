"""Every command block of tutorials, how-to pages and README is run, or says in its source why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT, read_page, run_page

SHOWN = {"yaml", "json", "text"}  # languages of blocks that are no commands
SAMPLE = "docs/tutorials/own-data.md"  # run by `make test`; all others by `make test-all`


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_block_is_run_or_says_why_not(path: Path) -> None:
    page = read_page(path)
    fences = re.findall(r"^ *```", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = [block for block in page.blocks if not block.text.startswith("cdn-tune") or block.language]
    assert len(fences) == 2 * len([block for block in shown if not _hidden(path, block.line)])
    for block in page.blocks:
        assert block.command or block.title or block.language in SHOWN, f"{page.name}:{block.line}: {block.language}"
        if not block.command:
            assert not re.search(r"^(cdn-tune|\$|pip|python) ", block.text, flags=re.MULTILINE) or block.title, (
                f"{page.name}:{block.line}: a command that is not run"
            )


def _hidden(path: Path, line: int) -> bool:
    return path.read_text(encoding="utf-8").splitlines()[line - 1].startswith("<!-- before")


def test_marks_belong_to_blocks() -> None:
    """A mark that no block follows would be forgotten there."""
    for path in PAGES:
        marks = len(re.findall(r"^<!-- not run: ", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
        assert marks == sum(bool(block.reason) for block in read_page(path).blocks), path


def _parameters() -> list[object]:
    pages = {path: read_page(path) for path in PAGES}
    running = [path for path, page in pages.items() if any(each.command and not each.reason for each in page.blocks)]
    assert ROOT / SAMPLE in running
    return [
        pytest.param(path, id=path.stem, marks=() if path == ROOT / SAMPLE else pytest.mark.slow) for path in running
    ]


@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")  # of what doctests import
@pytest.mark.parametrize("path", _parameters())
def test_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(read_page(path), tmp_path)


def test_a_failing_block_is_named(tmp_path: Path) -> None:
    page = DOCS / "broken.md"
    text = "# x\n\n<!-- with DIR=here -->\n\n```sh\nmkdir DIR\n```\n\n```sh\ntouch DIR/a\nfalse\necho no\n```\n"
    (tmp_path / "broken.md").write_text(text, encoding="utf-8")
    del page
    from tests.docs.pages import Page

    read = read_page_at(tmp_path / "broken.md")
    assert isinstance(read, Page)
    with pytest.raises(AssertionError, match=r"broken\.md:9: exit code 1"):
        run_page(read, tmp_path)
    assert (tmp_path / "here" / "a").exists()
