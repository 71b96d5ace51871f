"""Whatever a file of ours holds, reading it ends in success or in one clear line and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .corpus import FORMATS, Outcome, run_case

FEW, MANY = 16, 200  # cases of each format
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_damaged_files_end_in_success_or_one_line(name: str, folder: Path) -> None:
    assert run_case(name, None, folder) == Outcome(0, ())
    outcomes = {number: run_case(name, number, folder) for number in range(FEW)}
    assert {number: fault for number, outcome in outcomes.items() if (fault := outcome.fault)} == {}
    assert any(outcome.code == 2 for outcome in outcomes.values()), "nothing was damaged"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_many_damaged_files_within_limits(name: str, tmp_path: Path) -> None:
    """One process serves many cases; the one that a limit ends is the last that it began."""
    command = [sys.executable, "-m", "tests.fuzz.corpus", name, str(FEW), str(MANY), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    faults = {each["case"]: each["fault"] for each in told if each.get("fault")}
    assert faults == {}
    assert done.returncode == 0, f"ended with {done.returncode} in case {told[-1]['case'] if told else None}"
    assert sum("code" in each for each in told) == MANY
