"""What installed packages add to the tables: families, samplers, stopping rules, metrics; and packages at fault."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest

from cdn_tune import plugins
from cdn_tune.config import Experiment, SearchSpace, build, load_experiment, load_space
from cdn_tune.config.reference import reference
from cdn_tune.config.schema import experiment_schema, space_schema
from cdn_tune.config.tables import LAYOUTS, METRICS, SAMPLERS, SCHEDULES, STOPPING_RULES, find_metric, resolve
from cdn_tune.config.yaml import dump, read_mapping
from cdn_tune.errors import ConfigError
from cdn_tune.model import families
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.training.runs.run_folder import describe_run
from cdn_tune.tuning.results.record import read_record
from tests.packages import install
from tests.tuning.virtual_search import VirtualSearch, make_space

ROOT = Path(__file__).resolve().parents[1]
OWN = ROOT / "examples/own_parts"
Tiny = Callable[..., Experiment]
PARTS = {"model.name": "parts", "eval.metric": "start@0.2"}


def entry_points() -> dict[str, dict[str, str]]:
    """The entry points of the example, as its pyproject.toml declares them."""
    found: dict[str, dict[str, str]] = {}
    for line in (OWN / "pyproject.toml").read_text().partition("[project.entry-points")[2].splitlines():
        name, _, value = line.partition(" = ")
        if line.startswith(("[", ".")):
            found[line.split('"')[1]] = {}
        elif value:
            found[list(found)[-1]][name.strip('"')] = value.strip('"')
    return found


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path; what is installed there is known until the test ends."""
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(OWN), str(ROOT)]))
    plugins.forget()
    yield folder
    plugins.forget()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("own_parts", "mine")]:
        del sys.modules[name]


@pytest.fixture
def own(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example's package, installed."""
    monkeypatch.syspath_prepend(str(OWN))
    return install(path, "own-parts", entry_points())


def test_the_example_declares_one_of_each() -> None:
    groups = {families.GROUP, SAMPLERS.group, STOPPING_RULES.group, METRICS.group}
    assert set(entry_points()) == groups
    assert groups == {f"cdn_tune.{kind}" for kind in ("families", "samplers", "stopping_rules", "metrics")}
    assert (SCHEDULES.group, LAYOUTS.group) == ("cdn_tune.schedules", "cdn_tune.layouts")


@pytest.mark.usefixtures("own")
def test_files_may_name_what_is_installed(tiny: Tiny, tmp_path: Path) -> None:
    experiment = load_experiment(tiny(), {**PARTS, "model.parts": 4, "loss.sharpness": 2.0})
    assert experiment.model.plain() == {"name": "parts", "parts": 4, "width": 32}
    assert "start@0.3" in experiment.eval.metrics
    assert describe_run("train", experiment, {})["packages"]["own-parts"] == "1.0"
    (tmp_path / "experiment.yaml").write_text(dump(experiment.plain()))
    assert load_experiment(tmp_path / "experiment.yaml") == experiment
    values = {
        "name": "s",
        "experiment": "experiment.yaml",
        "parameters": {"model.width": {"type": "int", "low": 8, "high": 16}},
        "sampler": {"name": "halton"},
        "early_stopping": {"name": "hopeless"},
    }
    (tmp_path / "space.yaml").write_text(dump(values))
    space, base = load_space(tmp_path / "space.yaml")
    assert (space.sampler.name, space.early_stopping.name, base) == ("halton", "hopeless", experiment)

    checker = jsonschema.Draft202012Validator(experiment_schema())
    assert list(checker.iter_errors(experiment.plain())) == []
    assert list(checker.iter_errors({**experiment.plain(), "model": {"name": "part"}}))
    checker = jsonschema.Draft202012Validator(space_schema())
    assert list(checker.iter_errors(read_mapping(tmp_path / "space.yaml"))) == []
    assert list(checker.iter_errors({**values, "sampler": {"name": "haltn"}}))
    assert "*parts*: equal parts of a video, each a candidate" in reference(Experiment)
    assert "halton: scrambled Halton sequence" in reference(SearchSpace)
    assert "hopeless: below 1 % after its first epochs" in reference(SearchSpace)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("sampler", "sampler.name: 'haltn' is wrong: no such sampler; did you mean halton?"),
        ("early_stopping", "early_stopping.name: 'hopeles' is wrong: no such stopping rule; did you mean hopeless?"),
    ],
)
def test_names_of_installed_rows_are_offered(key: str, told: str) -> None:
    wrong = {"name": told.split("'")[1]}
    parameters = {"optim.lr": {"type": "float", "low": 0.1, "high": 1.0}}
    with pytest.raises(ConfigError) as caught:
        build(SearchSpace, {"name": "s", "experiment": "x", "parameters": parameters, key: wrong}, "file")
    assert told in str(caught.value)


@pytest.mark.usefixtures("path")
def test_without_the_package_a_file_that_names_it_is_one_line(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"'parts' is no model family; .* or install the package that registers it"):
        load_experiment(tiny(), {"model.name": "parts"})
    with pytest.raises(ConfigError, match=r"metric 'start@0\.2' is unknown"):
        load_experiment(tiny(), {"eval.metric": "start@0.2"})


@pytest.mark.usefixtures("own")
def test_a_search_uses_the_sampler_and_the_rule() -> None:
    space = make_space(sampler={"name": "halton"}, early_stopping={"name": "hopeless", "min_resource": 1})
    search = VirtualSearch(space, limit=5)
    assert search.start()
    rates = [trial.params["optim.lr"] for trial in search.trials]
    assert len(set(rates)) == 5
    again = VirtualSearch(space, limit=5)
    assert again.start()
    assert [trial.params["optim.lr"] for trial in again.trials] == rates


def test_our_own_names_import_no_package(path: Path, tiny: Tiny) -> None:
    text = "raise AssertionError('imported')\n"
    groups = {each.group: {"x": "mine:X"} for each in (SAMPLERS, STOPPING_RULES, METRICS, SCHEDULES, LAYOUTS)}
    install(path, "mine", {**groups, families.GROUP: {"x": "mine:X"}}, {"mine.py": text})
    code = (
        "import sys; from cdn_tune.config import load_experiment, load_space\n"
        "load_experiment('demo/small'); print('mine' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


BUILD = "    def build(self, data, loss): ...\n"
FAULTY = {
    "missing": ("mine_missing:X", "No module named 'mine_missing'"),
    "broken": ("mine.broken:X", "invalid syntax"),
    "ends": ("mine.ends:X", "SystemExit"),
    "nameless": ("mine.rows:NAMELESS", "has no attribute 'NAMELESS'"),
    "number": ("mine.rows:NUMBER", "it is no cdn_tune.config.tables.Sampler"),
    "tpe": ("mine.rows:GOOD", "the name is taken; choose another"),
}
MODULES = {
    "mine/__init__.py": "",
    "mine/broken.py": "def\n",
    "mine/ends.py": "raise SystemExit\n",
    "mine/rows.py": "from cdn_tune.config.tables import Sampler\n"
    "NUMBER = 3\nGOOD = Sampler('good', build='mine.nowhere:build')\n",
}


def test_what_is_wrong_is_named_once_and_left_out(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {name: value for name, (value, _) in FAULTY.items()} | {"good": "mine.rows:GOOD"}
    install(path, "mine", {SAMPLERS.group: entries}, MODULES)
    with caplog.at_level(logging.WARNING):
        names = list(SAMPLERS)
        assert SAMPLERS.check("good") == "good"
    assert [name for name in FAULTY if name in names] == ["tpe"]
    assert SAMPLERS["tpe"].startup
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len(FAULTY)
    for name, (value, reason) in FAULTY.items():
        (line,) = [line for line in told if line.startswith(f"entry point {name} = ")]
        assert line.startswith(f"entry point {name} = {value} (cdn_tune.samplers) of the package mine is left out: ")
        assert reason in line
        assert "\n" not in line
    with pytest.raises(ConfigError, match=r"mine\.nowhere:build cannot be imported"):
        resolve(SAMPLERS["good"].build)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Toy = 3\n", "it is no subclass of cdn_tune.config.ModelConfig"),
        ("class Toy: pass\n", "it is no subclass of cdn_tune.config.ModelConfig"),
        ("class Toy(ModelConfig):\n    label = 'Toy'\n", "abstract class Toy with abstract method build"),
        (f"class Toy(ModelConfig):\n    label = 'Toy'\n{BUILD}", "its class has name: '', and the entry point has to"),
        (f"class Toy(ModelConfig):\n    name: Literal['toy'] = 'toy'\n{BUILD}", "its class has no label"),
        (
            f"class Toy(ModelConfig):\n    label = 'Toy'\n    name: Literal['toy'] = 'toy'\n    size: int\n{BUILD}",
            "1 validation error for Toy size Field required",
        ),
    ],
)
def test_families_at_fault_are_left_out(
    path: Path, caplog: pytest.LogCaptureFixture, tiny: Tiny, text: str, reason: str
) -> None:
    head = "from typing import Literal\nfrom cdn_tune.config import ModelConfig\n"
    install(path, "mine", {families.GROUP: {"toy": "mine:Toy", "cdn": "mine:Toy"}}, {"mine.py": head + text})
    with caplog.at_level(logging.WARNING):
        assert list(families.known()) == ["cdn", "mmn", "snag", "tan"]
    assert load_experiment(tiny(), {"optim.lr": 0.5}).optim.lr == 0.5
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "the name is taken" in told[0]
    assert reason in told[1]


def test_two_packages_with_one_name(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("mine", "mine-too"):
        install(path, name, {SAMPLERS.group: {"good": "mine.rows:GOOD"}}, MODULES)
    assert SAMPLERS["good"].meaning == "good"
    (record,) = caplog.records
    assert "the name is taken" in record.getMessage()


@pytest.mark.usefixtures("own")
def test_metrics_are_found_by_their_templates() -> None:
    assert find_metric("start@0.25").settings == {"iou": 0.25}
    with pytest.raises(
        ValueError, match=r"write one such as R1@0\.5, mIoU, dR1@0\.5, allR1@0\.5, mAP@0\.5, mAP, start@0\.5"
    ):
        find_metric("strat@0.5")


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", "cdn_tune", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("own")
def test_the_command_line_trains_searches_and_evaluates_with_them(tiny: Tiny, tmp_path: Path) -> None:
    """In real processes, Ray's workers among them, which know the package by its metadata on the path alone."""
    (tmp_path / "experiment.yaml").write_text(dump(tiny(**{"train.epochs": 2}, **PARTS).plain()))
    trained, searched = tmp_path / "trained", tmp_path / "searched"
    assert "best val start@0.2" in run("train", tmp_path / "experiment.yaml", "--run", trained)
    assert {"start@0.2", "start@0.3"} <= read_metrics(trained)[-1]["val"].keys()
    space = {
        "name": "own",
        "experiment": "experiment.yaml",
        "parameters": {"model.width": {"type": "int", "low": 4, "high": 64}},
        "trials": 3,
        "sampler": {"name": "halton"},
        "early_stopping": {"name": "hopeless", "min_resource": 1},
    }
    (tmp_path / "space.yaml").write_text(dump(space))
    run("search", tmp_path / "space.yaml", "--run", searched)
    record = read_record(searched)
    assert {entry.state.name for entry in record.entries} <= {"COMPLETE", "PRUNED"}
    assert len({entry.params["model.width"] for entry in record.entries}) == len(record.entries) >= 3
    assert "start@0.5" in run("evaluate", searched)
    assert '"parts"' in run("schema", "experiment")
