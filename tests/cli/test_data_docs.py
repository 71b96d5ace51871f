"""The walk-throughs of docs/how-to/data.md, executed as they are written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cdn_tune.cli import app

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
PAGE = (ROOT / "docs" / "how-to" / "data.md").read_text(encoding="utf-8")


def blocks(heading: str) -> list[tuple[str, str]]:
    """The fenced blocks below a heading: language and text."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith(heading))
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def run(script: str, **names: str) -> str:
    """Runs the commands of a block; returns what they print."""
    printed = ""
    for line in script.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "cdn-tune"
        result = CliRunner().invoke(app, [names.get(argument, argument) for argument in arguments])
        assert result.exit_code == 0, f"{line}\n{result.output}"
        printed += result.output
    return printed


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_your_own_data(tmp_path: Path) -> None:
    printed = ""
    for language, text in blocks("Your own data"):
        if language == "sh":
            printed += run(text)
        elif language == "python":
            exec(compile(text, "docs/how-to/data.md", "exec"), {})  # noqa: S102
        elif language == "yaml":
            (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    assert "ready to train" in printed
    assert (tmp_path / "runs" / "own" / "evaluation.json").is_file()


def test_activitynet(tmp_path: Path) -> None:
    annotations = SHARED / "data" / "activitynet"
    if not annotations.is_dir():
        pytest.skip(f"{annotations} is absent")
    printed = "".join(run(text, ANNOTATIONS=str(annotations)) for _, text in blocks("ActivityNet Captions"))
    assert "ready to train" in printed
    assert "best val R1@0.5" in printed


def test_the_table_of_layouts_is_complete() -> None:
    from cdn_tune.config.tables import LAYOUTS
    from cdn_tune.data.layouts import layout_of

    for name in LAYOUTS:
        (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))
        assert all(f"`{file}`" in row for file in layout_of(name).features)
