"""The JSON Schemas for editors: equal to the models, true of every shipped file, and as strict as the loader."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.config.check import COMPARED
from cdn_tune.config.experiment import Experiment
from cdn_tune.config.keys import leaf_keys
from cdn_tune.config.schema import FILE, experiment_schema, schema_text, space_schema
from cdn_tune.config.yaml import read_mapping

ROOT = Path(__file__).resolve().parents[2]
FILES = [(kind, path) for kind in ("experiments", "search_spaces") for path in sorted((ROOT / kind).rglob("*.yaml"))]
KINDS = {"experiments": "experiment", "search_spaces": "space"}


@pytest.fixture(scope="module", params=["experiments", "search_spaces"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@lru_cache
def validator(kind: str) -> Any:
    schema = {"experiments": experiment_schema, "search_spaces": space_schema}[kind]()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_shipped_schema_is_the_model(kind: str) -> None:
    told = (ROOT / kind / FILE).read_text(encoding="utf-8")
    assert told == schema_text(KINDS[kind]), "rerun python -m cdn_tune.config.schema"


def test_shipped_files_are_valid(kind: str) -> None:
    checker = validator(kind)
    paths = [path for of, path in FILES if of == kind]
    assert paths
    for path in paths:
        assert [error.message for error in checker.iter_errors(read_mapping(path))] == [], path


@pytest.mark.parametrize(("kind", "path"), FILES, ids=lambda value: getattr(value, "stem", value))
def test_shipped_file_names_its_schema(kind: str, path: Path) -> None:
    named = [line for line in path.read_text().splitlines() if line.startswith("# yaml-language-server: $schema=")]
    assert len(named) == 1
    assert (path.parent / named[0].partition("=")[2]).resolve() == ROOT / kind / FILE


SPACE: dict[str, Any] = {
    "name": "s",
    "experiment": "x.yaml",
    "overrides": {"train.epochs": 3},
    "family_overrides": {"tan": {"train.epochs": 4}},
    "parameters": {
        "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
        "model.attention_steps": {"type": "int", "low": 1, "high": 3, "when": {"model.clip_pool": "attention"}},
    },
    "start_with": [{"optim.lr": 1e-4}],
    "objectives": ["R1@0.5", {"metric": "parameters"}],
}


def test_a_space_with_everything_is_valid() -> None:
    assert list(validator("search_spaces").iter_errors(SPACE)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"trails": 3},
        {"parameters": {"optim.rl": {"type": "float", "low": 1.0, "high": 2.0}}},
        {"parameters": {"eval.metric": {"type": "categorical", "choices": ["mIoU"]}}},
        {"parameters": {"optim.lr": {"low": 1.0, "high": 2.0}}},
        {"parameters": {"optim.lr": {"type": "float", "low": 1.0, "hi": 2.0}}},
        {"parameters": {"optim.lr": {"type": "float", "low": 1.0, "high": 2.0, "when": {"model.pool": 1}}}},
        {"overrides": {"train.epochs": "many"}},
        {"overrides": {"train": {"epochs": 3}}},
        {"family_overrides": {"tan": {"train": {"epochs": 3}}}},
        {"start_with": [{"lr": 1e-4}]},
        {"sampler": {"name": "magic"}},
        {"trials": 0},
    ],
    ids=str,
)
def test_what_the_loader_refuses_an_editor_marks(change: dict[str, Any]) -> None:
    assert list(validator("search_spaces").iter_errors({**SPACE, **change}))


def test_editors_are_offered_every_key_that_may_vary() -> None:
    offered = space_schema()["properties"]["parameters"]["properties"]
    assert set(offered) == {key for key in leaf_keys(Experiment) if not key.startswith(COMPARED)}
    assert all(each["description"] for each in offered.values())


def test_command_prints_it() -> None:
    for kind in ("experiment", "space"):
        result = CliRunner().invoke(app, ["schema", kind])
        assert result.exit_code == 0
        assert json.loads(result.stdout)["title"] == {"experiment": "Experiment", "space": "SearchSpace"}[kind]
    wrong = CliRunner().invoke(app, ["schema", "trial"])
    assert wrong.exit_code == 2
    assert "schema trial: there are two, experiment and space" in wrong.output
