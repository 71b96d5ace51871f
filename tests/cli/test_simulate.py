"""`cdn-tune simulate`: what it prints, its JSON, and one line for what it cannot simulate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cdn_tune.cli import app
from cdn_tune.config.yaml import dump
from cdn_tune.tuning.simulation.curves import write_table
from tests.tuning.simulation.tables import EPOCHS, make_curves
from tests.tuning.virtual_search import BASE, make_space


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A search space and a table of curves."""
    curves = make_curves(30)
    write_table(tmp_path / "table.jsonl.gz", curves.header, curves.records)
    (tmp_path / "base.yaml").write_text(dump(BASE.plain()))
    plain = make_space(early_stopping={"name": "asha", "reduction_factor": 2}).plain()
    plain |= {"experiment": "base.yaml", "trials": 10, "sampler": {"name": "tpe", "startup_trials": 4}}
    (tmp_path / "space.yaml").write_text(dump({key: plain[key] for key in plain if plain[key] is not None}))
    return tmp_path / "space.yaml", tmp_path / "table.jsonl.gz"


def simulate(space: Path, *more: Any) -> Result:
    return CliRunner().invoke(app, ["simulate", str(space), *map(str, more)])


def as_json(space: Path, *more: Any) -> dict[str, Any]:
    result = simulate(space, *more, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_json_has_what_a_comparison_needs(files: tuple[Path, Path]) -> None:
    space, table = files
    found = as_json(space, "--curves", table, "--slots", 3, "--trials", 8, "--seeds", 4)
    assert (found["slots"], found["seeds"], found["trials"]) == (3, 4, 8)
    assert 0.5 < found["slots_busy"] <= 1
    assert found["reports_per_second"] > 0
    assert found["test_regret"] == pytest.approx(found["best_test"] - found["chosen_test"])
    assert found["best_by_epochs"][-1]["epochs"] >= found["epochs"]
    assert found["best_by_epochs"][-1]["q50"] <= found["best_by_epochs"][-1]["q90"]
    assert found["curves"]["rank_correlation"] > 0.8
    assert found["curves"]["has_test"] is True
    again = as_json(space, "--curves", table, "--slots", 3, "--trials", 8, "--seeds", 4)
    assert {**again, "reports_per_second": 0} == {**found, "reports_per_second": 0}


def test_settings_reach_the_simulated_search(files: tuple[Path, Path]) -> None:
    space, table = files
    stopping = as_json(space, "--curves", table, "--seeds", 2)
    assert stopping["stopped_after_epoch"]
    whole = as_json(space, "--curves", table, "--seeds", 2, "--set", "early_stopping.name=none")
    assert whole["stopped_after_epoch"] == {}
    assert whole["epochs"] == 10 * EPOCHS
    assert whole["early_stopping"] == "none"


def test_the_text_names_its_curves_and_how_far_they_can_be_trusted(files: tuple[Path, Path]) -> None:
    space, table = files
    result = simulate(space, "--curves", table, "--seeds", 3, "--set", "resources.gpus_per_worker=1")
    assert result.exit_code == 0, result.output
    for part in ("rank correlation", "nearest recorded", "winner's curse", "GPU-hours", "30 configurations", "busy"):
        assert part in result.output
    assert "warning: trials train 8 epochs" in result.output


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (["train.epochs=60", "--set", "early_stopping.min_resource=50"], "min_resource=50 needs more"),
        (["eval.metric=R5@0.7"], "its curves lack R5@0.7"),
        (["--set", "early_stopping.name=wilcoxon"], "compares queries"),
        (["--curves", "nowhere"], "nowhere: no such file"),
    ],
)
def test_what_cannot_be_simulated_is_one_line(more: list[str], fault: str, files: tuple[Path, Path]) -> None:
    space, table = files
    result = simulate(space, *([] if "--curves" in more else ["--curves", table]), *more)
    assert result.exit_code == 2
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert fault in errors[0]


def test_parameters_that_the_table_does_not_know_are_told(files: tuple[Path, Path]) -> None:
    space, table = files
    more = "model.hidden:\n    type: int\n    low: 4\n    high: 8\n  model.map.layers:"
    space.write_text(space.read_text().replace("model.map.layers:", more))
    result = simulate(space, "--curves", table, "--seeds", 1)
    assert result.exit_code == 0, result.output
    assert "warning: the curves do not know model.hidden" in result.output
    assert "nearest recorded" in result.output


def test_a_run_without_enough_trials_is_one_line(files: tuple[Path, Path], make_search: Any, entry: Any) -> None:
    run = make_search([entry("complete", [0.2, 0.4]), entry("pruned", [0.1])])
    result = simulate(files[0], "--curves", run)
    assert result.exit_code == 2
    assert "complete trials have metrics" in result.output
