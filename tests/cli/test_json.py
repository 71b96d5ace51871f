"""`--json`: a flag on every command that prints data, and one JSON value is all that standard output then holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump
from cdn_tune.data.charades import LAYOUT

# Commands that print no data: they write files, change something, or print JSON anyway (schema).
WITHOUT = {
    "demo",
    "data extract",
    "export",
    "report",
    "report-bug",
    "schema",
    "import-weights",
    "search stop",
    "search rebuild",
    "data convert",
    "data plant",
    "data draw",
    "data text",
}
WITHOUT |= {"cluster init", "cluster submit", "cluster logs", "cluster stop", "cluster fetch"}


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} ")
        else:
            yield prefix + name, command


def test_every_command_that_prints_data_has_the_flag() -> None:
    found = dict(commands(typer.main.get_command(app)))
    flags = {
        name
        for name, command in found.items()
        for option in command.params
        if "--json" in option.opts and option.is_flag
    }
    assert found.keys() - flags == WITHOUT


def printed(*arguments: object) -> Any:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("form", [["--json", "FILE"], ["--json=FILE"], ["--out", "FILE"], ["--json", "--out", "FILE"]])
def test_doctor_takes_the_older_form_too(form: list[str], planted: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    arguments = [part.replace("FILE", str(file)) for part in form]
    result = CliRunner().invoke(app, ["data", "doctor", *arguments, str(planted), "--quick"])
    assert result.exit_code == 0, result.output
    assert json.loads(file.read_text())["dataset"] == "charades_sta"
    if arguments[0] == "--json" and arguments[1] == "--out":
        assert json.loads(result.stdout) == json.loads(file.read_text())
    else:
        assert "ready to train" in result.stdout


def test_doctor_and_scores(planted: Path, tmp_path: Path) -> None:
    assert printed("data", "doctor", planted, "--quick", "--json")["fails"] is False
    items = LAYOUT.load(planted, "test").annotations
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps({"id": item.id, "moments": [[0.0, 1.0]]}) + "\n" for item in items))
    scores = printed("evaluate", "--predictions", file, "--data", planted, "--json")
    assert scores["queries"] == len(items)


def test_plan(tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(dump(tiny().plain()))
    plan = printed("train", file, "--plan", "--json")
    assert plan["parameters"] > 0
    assert plan["memory"]["weights"] >= 4 * plan["parameters"]
    assert plan["peak_bytes"] >= plan["base_bytes"] > 0


@pytest.mark.parametrize("command", [["train", "experiments/demo/small"], ["search", "quick"]])
def test_a_plan_is_what_train_and_search_print(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 2
    assert "--json prints what --plan finds; add --plan" in result.output
