"""`make docs`: builds the documentation site from docs/ into site/, without a network.

`docs/reference/commands.md` is written anew from the commands themselves. A dead link, a missing anchor and a page that
is not in the navigation end it with exit code 1, each with its page and line.
"""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tomllib

from cdn_tune.resources import DOCS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "zensical.toml"
COMMANDS = Path("reference") / "commands.md"


def navigation(part: Any) -> list[str]:
    """The pages that a part of the navigation names."""
    if isinstance(part, str):
        return [part]
    return [page for each in (part.values() if isinstance(part, dict) else part) for page in navigation(each)]


def strangers(config: Path) -> list[str]:
    """A line for each page that the navigation does not name, or that it names and is not there."""
    docs = config.parent / "docs"
    there = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} | {COMMANDS.as_posix()}
    text = config.read_text(encoding="utf-8")
    named = navigation(tomllib.loads(text)["project"]["nav"])
    lines = [f"docs/{page}:1: is not in the navigation; add it to `nav` in {config.name}" for page in there - {*named}]
    for page in {*named} - there:
        line = text.count("\n", 0, text.index(f'"{page}"')) + 1
        lines.append(f"{config.name}:{line}: {page}: no such page in docs")
    return sorted(lines)


def build(config: Path = CONFIG) -> int:
    """Builds the site of a configuration; returns the exit code."""
    begun = time.monotonic()
    if wrong := strangers(config):
        sys.stderr.write("\n".join(wrong) + "\n")
        return 1
    typer = [
        sys.executable,
        "-m",
        "typer",
        "cdn_tune.cli",
        "utils",
        "docs",
        "--name",
        "cdn-tune",
        "--title",
        "Commands",
    ]
    written = config.parent / "docs" / COMMANDS
    written.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([*typer, "--output", written], check=True, stdout=subprocess.DEVNULL)
    text = written.read_text(encoding="utf-8")
    written.write_text(text.replace(f"Documentation: {DOCS}", ""), encoding="utf-8")  # a path of this machine
    zensical = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(zensical, cwd=config.parent, check=False, capture_output=True, text=True)
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    if done.returncode:
        sys.stderr.write(said.partition("Traceback (most recent call last)")[0])
        return 1
    sys.stdout.write(f"site/index.html, in {time.monotonic() - begun:.0f} s: open it in a browser\n")
    return 0


if __name__ == "__main__":
    sys.exit(build())
