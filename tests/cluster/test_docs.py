"""The pages about clusters say what the files and the command lines do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "clusters",
    "workstation",
    "slurm",
    "kubernetes",
    "cloud",
    "jobs",
    "object-storage",
    "nodes",
    "cluster-security",
)
TEXT = "\n".join((ROOT / "docs" / "how-to" / f"{name}.md").read_text() for name in NAMES)
FILES = [file for file in (ROOT / "cluster").rglob("*") if file.is_file()]


def code() -> list[str]:
    """Everything set as code, blocks line by line."""
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))
    return [line for block in blocks for line in block.splitlines()] + inline


def commands() -> list[list[str]]:
    """The words of every command, those quoted for another machine included."""
    found = []
    for line in code():
        try:
            words = shlex.split(line)
        except ValueError:
            continue
        found.append(words)
        found += [shlex.split(word) for word in words if word.startswith(("cdn-tune ", "ray "))]
    headers = [re.sub(r"^# ?", "", line) for file in FILES for line in file.read_text().splitlines() if line[:1] == "#"]
    joined = " ".join(headers).replace("\\ ", " ")
    found += [shlex.split(each) for each in re.findall(r"'(cdn-tune search SPACE [^']+)'", joined)]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_file_is_named(file: Path) -> None:
    names = [file, *file.parents]
    paths = {str(each.relative_to(ROOT)) for each in names if ROOT in each.parents} - {"cluster", "cluster/kubernetes"}
    assert file.name.endswith("ignore") or any(f"`{path}" in TEXT or f" {path}" in TEXT for path in paths)


def test_every_path_it_names_exists() -> None:
    named = re.findall(r"(?<![\w/.])((?:cluster|search_spaces|docs)/[\w./-]*\w)", TEXT)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_blank_to_fill_in_is_explained_and_marked() -> None:
    blanks = {blank for file in FILES for blank in re.findall(r"REPLACE_[A-Z_]+[A-Z0-9_]*", file.read_text())}
    assert blanks
    assert {blank for blank in blanks if f"`{blank}`" not in TEXT} == set()
    assert set(re.findall(r"REPLACE_[A-Z_]+[A-Z0-9_]*", TEXT)) - {"REPLACE_"} == blanks
    for file in FILES:
        assert ("REPLACE_" in file.read_text()) <= ("FILL IN" in file.read_text()), file


def test_searches_parse() -> None:
    from typer.main import get_command

    from cdn_tune.cli.app import app

    group: Any = get_command(app)
    start = group.commands["search"].commands["start"]
    searches = [words for words in commands() if words[:2] == ["cdn-tune", "search"] and len(words) > 3]
    searches = [words for words in searches if words[2] not in ("stop", "status") and "…" not in words]
    assert len(searches) >= 8
    for words in searches:
        parsed = start.make_context("search", words[2:]).params
        assert parsed["space"] == "SPACE" or (ROOT / parsed["space"]).exists()
        remote = any("://" in word and "data.features" in word for word in words)
        assert not remote or str(parsed["storage"]).startswith("postgresql:")
        assert "--address" not in words or str(parsed["address"]) == "auto"


def test_ray_commands_parse() -> None:
    from ray.scripts.scripts import cli

    called = [words for words in commands() if words[:1] == ["ray"] and len(words) > 1 and "…" not in words[-1]]
    assert len(called) >= 15
    for words in called:
        name, *rest = words[1:]
        command: Any = cli.commands[name]
        given = [word for word in rest if word not in (">", "/dev/null);")]
        options = [word.partition("=")[0] for word in given if word.startswith("-")]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(options) <= known, words


def test_what_was_never_run_is_said() -> None:
    section = TEXT.partition("## What was validated and how")[2]
    for what in ("aws.yaml", "gcp.yaml", "azure.yaml", "kubernetes/", "search.sbatch", "Dockerfile", "on-premise.yaml"):
        assert f"cluster/{what}" in section or f"cluster/slurm/{what}" in section, what
