"""docs/how-to/data.md: its block that needs annotations of others, where they are; its table of layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import ROOT, SHARED
from tests.docs.pages import read_page, run_page

PATH = ROOT / "docs" / "how-to" / "data.md"


@pytest.mark.slow
def test_activitynet(tmp_path: Path) -> None:
    annotations = SHARED / "data" / "activitynet"
    if not annotations.is_dir():
        pytest.skip(f"{annotations} is absent")
    page = read_page(PATH)
    (block,) = (block for block in page.blocks if "ANNOTATIONS" in block.text and block.reason)
    words = {"ANNOTATIONS": str(annotations)}
    printed = run_page(replace(page, blocks=(replace(block, reason=""),), words=words), tmp_path)
    assert "ready to train" in printed
    assert "best val R1@0.5" in printed


def test_the_table_of_layouts_is_complete() -> None:
    from cdn_tune.config.tables import LAYOUTS
    from cdn_tune.data.layouts import layout_of

    for name in LAYOUTS:
        (row,) = (line for line in PATH.read_text("utf-8").splitlines() if line.startswith(f"| `{name}`"))
        assert all(f"`{file}`" in row for file in layout_of(name).features)
