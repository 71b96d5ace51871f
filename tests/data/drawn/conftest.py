"""A dozen drawn videos, which tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdn_tune.data.drawn import draw


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their folder. Read only."""
    pytest.importorskip("av")
    return draw(tmp_path_factory.mktemp("drawn") / "root", 12).root
