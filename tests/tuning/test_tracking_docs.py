"""docs/how-to/tracking.md, executed as it is written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cdn_tune.config.tracking import TrackingConfig
from cdn_tune.training.tracking.client_settings import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how-to" / "tracking.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
LINES = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


def test_its_section_is_one() -> None:
    (text,) = (text for kind, text in BLOCKS if kind == "yaml")
    section = TrackingConfig.model_validate(yaml.safe_load(text)["tracking"])
    assert set(section.model_fields_set) == set(TrackingConfig.model_fields), "it shows every key"


def test_settings_are_as_told() -> None:
    assert f"`MLFLOW_HTTP_REQUEST_TIMEOUT` ({SETTINGS['MLFLOW_HTTP_REQUEST_TIMEOUT']} seconds here)" in PAGE
    programs = {shlex.split(line)[0] for line in LINES}
    assert programs == {"pip", "cdn-tune", "mlflow", "tensorboard", "optuna-dashboard"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_its_commands_run(tmp_path: Path) -> None:
    """Those of cdn-tune, on planted data and with fewer trials; with MLflow's store in a file."""
    pytest.importorskip("mlflow")
    lines = [line for line in LINES if line.startswith("cdn-tune") and "http:" not in line]
    assert [line.split()[1] for line in lines] == ["data", "search"]
    for line in lines:
        words = [*shlex.split(line)[1:], *(["--trials", "2"] if " search " in line else [])]
        done = subprocess.run(
            [sys.executable, "-m", "cdn_tune", *words], cwd=tmp_path, capture_output=True, text=True, timeout=800,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert "MLflow: sqlite:///mlflow.db" in done.stderr
    for name in ("trials/0000/tensorboard", "study.journal"):
        assert (tmp_path / "runs" / "demo" / name).exists()
    assert "runs/demo/study.journal" in PAGE
