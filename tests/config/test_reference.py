"""The documented keys are the real ones."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.config.reference import reference

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/configuration.md"


@pytest.mark.parametrize("model", [Experiment, SearchSpace])
def test_page_lists_every_key(model: type[BaseModel]) -> None:
    assert reference(model) in PAGE.read_text(encoding="utf-8"), "rerun python -m cdn_tune.config.reference"


@pytest.mark.parametrize("model", [Experiment, SearchSpace])
def test_every_key_has_a_meaning(model: type[BaseModel]) -> None:
    for line in reference(model).splitlines()[2:]:
        assert line.split("|")[3].strip(), line
