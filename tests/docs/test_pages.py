"""Every command block of tutorials, how-to pages and README is run, or says in its source why not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer import Context
from typer.main import get_command

from cdn_tune.cli import app
from tests.conftest import ROOT
from tests.docs.pages import PAGES, Page, read_page, run_page

SHOWN = {"", "json", "text", "toml", "yaml"}  # languages of blocks that are no commands; none: what was printed
COMMAND = re.compile(r"^(?:\$ |cdn-tune |pip |python3? |ray |make )", flags=re.MULTILINE)
SAMPLE = "docs/how-to/data.md"  # run by `make test`; all others by `make test-all`
PRINTED = {  # what a page shows of its commands' output, as far as it does not vary
    "docs/how-to/predict.md": "P0001: 37.01 s (from the annotations in ",
    "docs/how-to/data.md": "ready to train",
    "docs/tutorials/own-data.md": "ready to train",
}


def runs(page: Page) -> bool:
    """Whether any of a page's blocks is run."""
    return any(block.command and not block.reason for block in page.blocks)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_command_block_is_run_or_says_why_not(path: Path) -> None:
    """By kinds that the reader knows: no fence, mark or hidden command is overlooked, and none of another language."""
    text = path.read_text(encoding="utf-8")
    page = read_page(path)
    fences = [block for block in page.blocks if not block.hidden]
    assert len(re.findall(r"^ *```", text, flags=re.MULTILINE)) == 2 * len(fences)
    assert text.count("<!-- not run: ") == sum(bool(block.reason) for block in fences)
    assert text.count("<!-- before\n") == sum(block.hidden for block in page.blocks)
    for block in fences:
        place = f"{page.name}:{block.line}"
        assert block.command or block.title or block.language in SHOWN, f"{place}: {block.language}"
        assert block.command or block.language == "text" or not COMMAND.search(block.text), f"{place}: not run"


def commands(text: str) -> Iterator[list[str]]:
    """The words of each cdn-tune command of a block."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip().startswith("cdn-tune "):
            yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_command_and_option_exists(path: Path) -> None:
    """Those of blocks that are not run, too."""
    page = read_page(path)
    for block in page.blocks:
        for words in commands(block.text) if block.language == "sh" else ():
            command: Any = get_command(app)
            while hasattr(command, "commands"):
                name = words[0] if words[0] in command.commands else "start"
                command, words = command.commands[name], words[words[0] == name :]
            try:
                command.make_parser(Context(command)).parse_args(list(words))
            except Exception as error:  # Typer's own of an unknown option has no public name
                pytest.fail(f"{page.name}:{block.line}: {error}")


def test_every_tutorial_is_run() -> None:
    assert ROOT / SAMPLE in PAGES
    assert [path.stem for path in PAGES if path.parent.name == "tutorials" and not runs(read_page(path))] == []


@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")  # of what doctests import
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path == ROOT / SAMPLE else pytest.mark.slow)
        for path in PAGES
        if runs(read_page(path))
    ],
)
def test_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = read_page(path)
    assert PRINTED.get(page.name, "") in run_page(page, tmp_path)


def test_a_block_that_fails_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.md"
    path.write_text(
        "# x\n\n<!-- with DIR=here -->\n<!-- before\nmkdir DIR\n-->\n\n```sh\ntouch DIR/a\nfalse\necho no\n```\n",
        encoding="utf-8",
    )
    with pytest.raises(AssertionError, match=r"broken\.md:8: exit code 1"):
        run_page(read_page(path), tmp_path)
    assert (tmp_path / "here" / "a").exists()
