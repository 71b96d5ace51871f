"""Supported versions are checked at start; what a version of Ray has not is done without."""

import re
import runpy
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from cdn_tune import compat
from cdn_tune.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
HALF = """
import sys
from collections import Counter
from importlib import metadata
real = metadata.version
metadata.version = lambda name: "1.13.1" if name == "optuna" else real(name)
sys.argv = ["cdn-tune", "leaderboard", "nowhere"]
import cdn_tune.__main__
"""


@pytest.mark.parametrize(
    ("name", "version", "fits"),
    [
        ("ray", "2.52.1", False),
        ("ray", "2.53.0", True),
        ("ray", "2.100.0rc1", True),
        ("ray", "3.0.0.dev0", False),
        ("optuna", "6", False),
        ("torch", "2.13.0+cpu", True),
        ("torch", "3.1", True),
        ("torch", "2.5.1", False),
    ],
)
def test_versions_outside_the_range_are_refused(
    name: str, version: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda asked: version if asked == name else real(asked))
    if fits:
        compat.check_versions()
        return
    with pytest.raises(ConfigError, match=rf"{name} {re.escape(version)} is installed, .* {name}>=\d.*pip install"):
        compat.check_versions()


def test_a_command_says_so_in_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", HALF], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: optuna 1.13.1 is installed")
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_ranges_are_those_that_pip_sees() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    for name, (oldest, below) in compat.SUPPORTED.items():
        [wanted] = re.findall(rf'^  "{name}(?:\[.*\])?(>=[^"]*)",', text, re.MULTILINE)
        assert wanted == f">={oldest}" + (f",<{below}" if below else "")


def test_a_ray_without_its_inside_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray._private.state", None)
    assert compat.live_actors() == []
    assert compat.free_resources() == {}


def test_the_table_has_a_column_per_corner_and_a_line_per_claim() -> None:
    runner = runpy.run_path(str(ROOT / "tests" / "compat" / "__main__.py"), run_name="compat")
    found = {
        "oldest": {"jobs": Counter(passed=2, failed=1)},
        "newest": {"jobs": Counter(passed=3), "resume": Counter(passed=1)},
    }
    assert runner["table"](found).splitlines() == [
        "| what | oldest | newest |",
        "|---|---|---|",
        "| jobs | 2 passed, 1 failed | 3 passed |",
        "| resume | not run | 1 passed |",
    ]
    assert "ray==2.53.*" in runner["requirements"]("oldest")
    assert "ray>=2.53,<3" in runner["requirements"]("newest")
