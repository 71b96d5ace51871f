"""The pages of the documentation as tests run them: every command block of tutorials, how-to pages and README.

A page's blocks run in order, in an empty folder:

- ``sh`` by bash, which stops at the first command that fails;
- ``python`` as a script, one with those that follow it; with ``>>>`` as a doctest, whose names later doctests know;
- a block with ``title="FILE"``, of whatever language, is written to FILE;
- all others are only shown.

Comments in the page's source, which readers of the site do not see, say the rest::

    <!-- not run: REASON -->                  the block below is not run
    <!-- with RUN=runs/small DIR=data -->     what the words RUN and DIR of this page's commands stand for
    <!-- before                               commands that come first, such as those that plant the page's data
    cdn-tune data plant data
    -->
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted((DOCS / "tutorials").glob("*.md")), *sorted((DOCS / "how-to").glob("*.md"))]
LONGEST = 900  # seconds that a block may take
PROGRAMS = Path(sys.executable).parent  # of the environment of the tests

_PART = re.compile(
    r"^(?P<indent> *)```(?P<head>[^`\n]*)\n(?P<text>.*?)^(?P=indent)```$"
    r"|^<!-- not run: (?P<reason>.+?) -->$|^<!-- with (?P<words>.+?) -->$|^<!-- before\n(?P<before>.*?)^-->$",
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block, or a hidden one: its line, language and text, the file it is written to, why it is not run."""

    line: int
    language: str
    text: str
    title: str = ""
    reason: str = ""
    hidden: bool = False

    @property
    def command(self) -> bool:
        """Whether it holds something to run."""
        return self.language in ("sh", "python") and not self.title


_END = Block(0, "sh", "true")


@dataclass(frozen=True)
class Page:
    """A page's blocks in order; the words that stand for something, and for what."""

    name: str
    blocks: tuple[Block, ...]
    words: dict[str, str]


def read_page(path: Path) -> Page:
    """Reads the blocks of a page."""
    source = path.read_text(encoding="utf-8")
    blocks: list[Block] = []
    words: dict[str, str] = {}
    reason, ended = "", 0
    for part in _PART.finditer(source):
        line = source.count("\n", 0, part.start()) + 1
        if part["reason"]:
            reason, ended = part["reason"], part.end()
        elif part["words"]:
            words |= dict(word.split("=", 1) for word in shlex.split(part["words"]))
        elif part["before"]:
            blocks.append(Block(line, "sh", part["before"], hidden=True))
        else:
            language, _, rest = part["head"].partition(" ")
            title = re.search(r'title="([^"]+)"', rest)
            text = re.sub(f"^{part['indent']}", "", part["text"], flags=re.MULTILINE)
            near = reason if not source[ended : part.start()].strip() else ""
            blocks.append(Block(line, language, text, title[1] if title else "", near))
            reason = ""
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return Page(name, tuple(blocks), words)


def run_page(page: Page, folder: Path, programs: Path = PROGRAMS) -> str:
    """Runs a page's blocks in a folder, with the programs of an environment; returns all that was printed.

    Raises:
        AssertionError: With page, line and output, if a block fails.
    """
    printed, script, names = "", "", dict[str, object]()
    for block in (*page.blocks, _END):
        place = f"{page.name}:{block.line}"
        text = block.text
        for word, meaning in page.words.items():
            text = re.sub(rf"(?<![\w$]){re.escape(word)}(?!\w)", meaning, text)
        runs = block.command and not block.reason
        if runs and block.language == "python" and ">>>" not in text:
            script += "\n" * (block.line - script.count("\n")) + text  # so that a traceback has the page's lines
            continue
        if script and (runs or block.title):
            printed += _run(["python", "-c", script], folder, page.name, programs)
            script = ""
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(text, encoding="utf-8")
        elif runs and ">>>" in text:
            _doctest(text, names, place)
        elif runs:
            printed += _run(["bash", "-euo", "pipefail", "-c", text], folder, place, programs)
    return printed


def _doctest(text: str, names: dict[str, object], place: str) -> None:
    examples = doctest.DocTestParser().get_doctest(text, names, place, None, 0)
    said: list[str] = []
    failed, _ = doctest.DocTestRunner().run(examples, out=said.append, clear_globs=False)
    names |= examples.globs
    assert not failed, f"{place}\n{''.join(said)}"


def _run(command: list[str], folder: Path, place: str, programs: Path) -> str:
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "160", "TERM": "dumb"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=LONGEST)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, f"{place}: exit code {process.returncode}\n{printed[-5000:]}"
    return printed
