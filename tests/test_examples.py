"""The scripts of examples/ run, on planted data; `tests/docs` runs the page on them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packages import install
from tests.test_plugins import OWN, ROOT, entry_points

EXAMPLES = ROOT / "examples"
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/how-to/python.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of all scripts, with the example's package installed beside it."""
    folder = tmp_path_factory.mktemp("examples")
    install(folder / "installed", "own-parts", entry_points())
    return folder


def run(folder: Path, *arguments: object) -> str:
    path = os.pathsep.join(map(str, (folder / "installed", OWN, ROOT)))
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": ""}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_train_and_predict(folder: Path) -> None:
    out = run(folder, EXAMPLES / "train.py")
    assert re.search(r"^epoch 1: loss ", out)
    assert "best val R1@0.5 " in out
    out = run(folder, EXAMPLES / "predict.py")
    assert out.count(", score ") >= 2


@pytest.mark.slow
def test_search_and_open_run(folder: Path) -> None:
    out = run(folder, EXAMPLES / "search.py")
    assert len(re.findall(r"^trial \d (?:complete|pruned): val R1@0\.5 0\.\d+$", out, re.M)) == 3
    out = run(folder, EXAMPLES / "open_run.py")
    assert "'mIoU': 0." in out
    assert run(folder, EXAMPLES / "open_run.py").count("of the Optuna study") >= 1
    assert len((folder / "runs/example-search/looks.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_own_parts(folder: Path) -> None:
    assert "best val start@0.1 " in run(folder, OWN / "demo.py")


def test_the_page_s_code_is_python_and_names_what_there_is() -> None:
    import cdn_tune

    assert len(BLOCKS) >= 5
    for block in BLOCKS:
        compile(block, "docs/how-to/python.md", "exec")
        for name in re.findall(r"\bcdn_tune\.(\w+)", block):
            assert name in cdn_tune.__all__ or (ROOT / "cdn_tune" / name).exists(), name
