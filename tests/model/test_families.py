"""Families: one from outside is trained, searched against CDN, evaluated, exported and reported through the door."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cdn_tune import load
from cdn_tune.cli import app
from cdn_tune.config import Experiment, SearchSpace, build, load_space, override, override_space
from cdn_tune.config.reference import reference
from cdn_tune.config.schema import experiment_schema, space_schema
from cdn_tune.config.yaml import dump, read_mapping
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.errors import ConfigError
from cdn_tune.model import families
from cdn_tune.training.memory.estimate import estimate
from cdn_tune.training.reports import EpochReport, ignore
from cdn_tune.training.runs.checkpoint import LAST, build_model, load_checkpoint, read_checkpoint, save_checkpoint
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.training.runs.run_folder import claim, describe_run, locked
from cdn_tune.training.train_trial import train_in
from cdn_tune.tuning.planning.random_points import count_points, draw
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.study.candidates import Candidates

ROOT = Path(__file__).resolve().parents[2]
OWN = ROOT / "examples/own_parts"
Tiny = Callable[..., Experiment]
CPU = torch.device("cpu")
NAMES = {"type": "categorical", "choices": ["cdn", "parts"]}
WIDTH = {"type": "int", "low": 4, "high": 16, "when": {"model.name": "parts"}}
LAYERS = {"type": "int", "low": 1, "high": 2, "when": {"model.name": "cdn"}}
KERNELS = {"type": "categorical", "choices": [3, 5], "per_layer": True, "when": {"model.name": "cdn"}}
BOTH: dict[str, Any] = {"model.name": NAMES, "model.width": WIDTH, "model.map.layers": LAYERS}


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's family, added as a user adds one who has no package."""
    monkeypatch.setenv(families.ENVIRONMENT, "parts=own_parts.family:PartsConfig")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(OWN), str(ROOT)]))
    monkeypatch.syspath_prepend(str(OWN))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts") / "run"


@pytest.fixture
def run(tiny: Tiny, finished: Path, tmp_path: Path) -> Path:
    """A finished train run of the family."""
    if not finished.exists():
        experiment = tiny(**{"model.name": "parts"})
        with locked(finished):
            manifest = describe_run("train", experiment, fingerprint(experiment.data))
            claim(finished, manifest, {"experiment.yaml": experiment.plain()})
            train_in(experiment, finished, ignore)
    return Path(shutil.copytree(finished, tmp_path / "run"))


def invoke(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def write_space(folder: Path, experiment: Experiment, parameters: dict[str, Any], **more: Any) -> Path:
    (folder / "experiment.yaml").write_text(dump(experiment.plain()))
    path = folder / "space.yaml"
    path.write_text(dump({"name": "s", "experiment": "experiment.yaml", "parameters": parameters, **more}))
    return path


def refused(path: Path, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_space(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_its_page_shows_the_example() -> None:
    page = (ROOT / "docs/how-to/own-family.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|toml)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    files = ("own_parts/family.py", "own_parts/network.py", "pyproject.toml")
    code = "".join((OWN / name).read_text(encoding="utf-8") for name in files)
    lines = [line for _, block in blocks for line in re.sub(r'"""[^"]*"""|  # .*', "", block).splitlines()]
    ours = {line.partition("  # ")[0] for line in code.splitlines()}
    absent = {line for line in lines if line.strip() and line not in ours}
    assert absent == {
        "from typing import Literal",
        "from cdn_tune.config import LossConfig, ModelConfig",
        "    def build(self, data, loss):",
        "print(PartsConfig(parts=4).plain())",
    }


# ---- the table -------------------------------------------------------------------------------------------------------


def test_configurations_are_read_without_torch() -> None:
    code = (
        "import sys; from cdn_tune.config import load_experiment as l; l('demo/small'); print('torch' in sys.modules)"
    )
    environment = {**os.environ, families.ENVIRONMENT: ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("parts", "'parts' is no NAME=MODULE:CLASS; write it like toy=my_models.toy:Toy"),
        (
            "parts=own_prats.family:PartsConfig",
            "'parts' cannot be imported (No module named 'own_prats'); CDN_TUNE_FAMILIES names own_prats",
        ),
        (
            "parts=own_parts.family:PartConfig",
            "CDN_TUNE_FAMILIES names own_parts.family:PartConfig, put it on PYTHONPATH",
        ),
    ],
)
def test_a_wrong_entry_of_the_environment(monkeypatch: pytest.MonkeyPatch, entry: str, words: str) -> None:
    monkeypatch.setenv(families.ENVIRONMENT, entry)
    with pytest.raises(ConfigError, match=re.escape(words)):
        families.family("parts")


# ---- configuration ---------------------------------------------------------------------------------------------------


def test_old_files_name_no_family_and_are_equal(tiny: Tiny) -> None:
    experiment = tiny()
    old = experiment.plain()
    assert old["model"].pop("name") == "cdn"
    assert build(Experiment, old, "old") == experiment


def test_an_old_run_and_its_checkpoints_are_gone_on_with(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"train.epochs": 1})
    new = {"experiment.yaml": experiment.plain()}
    claim(tmp_path, {"kind": "train"}, new)
    old = experiment.plain()
    del old["model"]["name"]
    (tmp_path / "experiment.yaml").write_text(dump(old))
    assert claim(tmp_path, {"kind": "train"}, new)
    train_in(experiment, tmp_path, ignore)
    content = read_checkpoint(tmp_path / LAST)

    class Old:
        def plain(self) -> dict[str, Any]:
            return old

    del content["experiment"], content["format"], content["cdn_tune"]
    save_checkpoint(tmp_path / LAST, Old(), content)  # type: ignore[arg-type]
    assert train_in(experiment, tmp_path, ignore).epochs_run == 0
    assert load_checkpoint(tmp_path / LAST.parent / "best.pt").experiment == experiment


def test_another_family_leaves_the_values_of_the_base_behind(tiny: Tiny) -> None:
    base = tiny(**{"loss.min_iou": 0.3})
    own = override(base.plain(), {"model.name": "parts", "model.width": 5, "loss.sharpness": 2.0}, "x")
    assert own.model.plain() == {"name": "parts", "parts": 8, "width": 5}
    assert own.loss.plain() == {"sharpness": 2.0}
    assert override(base.plain(), {"model.name": "cdn"}, "x") == base
    assert build(Experiment, own.plain(), "x") == own
    assert override(own.plain(), {"model.name": "cdn"}, "x").loss.plain()["min_iou"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"model.name": "part"},
            "model.name: 'part' is no model family; known are cdn, mmn, snag, tan, parts; did you mean parts?",
        ),
        ({"model.name": 3}, "model.name: 3 is no model family; known are cdn, mmn, snag, tan, parts; use one of them"),
        ({"model.width": 3}, "model.width: unknown key of the family cdn; with model.name=parts it exists"),
        (
            {"model.name": "parts", "loss.min_iou": 0.1},
            "loss.min_iou: unknown key of the family parts; with model.name=cdn",
        ),
        ({"model.wdth": 3}, "model.wdth: unknown key; did you mean model.width?"),
    ],
)
def test_wrong_experiments(tiny: Tiny, overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        override(tiny().plain(), overrides, "x.yaml")
    assert "\n" not in str(caught.value)


def test_schema_and_reference_know_all_families(tiny: Tiny, tmp_path: Path) -> None:
    table = reference(Experiment)
    assert "| `model.width` | `32` | *parts*: size in which" in table
    assert "| `model.clips` | `16` | *cdn*: clips" in table
    schema = jsonschema.Draft202012Validator(experiment_schema())
    for experiment in (tiny(), tiny(**{"model.name": "parts"})):
        assert list(schema.iter_errors(experiment.plain())) == []
        assert list(schema.iter_errors({**experiment.plain(), "model": {"name": "part"}}))
    space = read_mapping(write_space(tmp_path, tiny(), BOTH))
    checker = jsonschema.Draft202012Validator(space_schema())
    assert list(checker.iter_errors(space)) == []
    assert list(checker.iter_errors({**space, "parameters": {"model.widht": WIDTH}}))


# ---- search spaces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (
            {"model.name": NAMES, "model.width": {**WIDTH, "when": {}}},
            "parameters.model.width: is a key of parts, but sampled where model.name is cdn; add to it: when: "
            "{model.name: parts}",
        ),
        (
            {"model.name": NAMES, "model.attention_steps": {"type": "int", "low": 1, "high": 2, "when": {"seed": 0}}},
            "add to it: when: {model.name: cdn, seed: 0}",
        ),
        (
            {"model.name": NAMES, "model.width": {**WIDTH, "when": {"model.name": ["cdn", "parts"]}}},
            "but sampled where model.name is cdn; add to it: when: {model.name: parts}",
        ),
        (
            {"model.name": NAMES, "model.offsets": {"type": "categorical", "choices": ["none", "diou"], "when": {}}},
            "is a key of cdn and tan, but sampled where model.name is parts; add to it: when: {model.name: cdn}",
        ),
        (
            {"model.width": {**WIDTH, "when": {}}},
            "add to it: when: {model.name: parts}, and to parameters: model.name: {type: categorical, "
            "choices: [cdn, parts]}",
        ),
        (
            {"model.name": {**NAMES, "choices": ["cdn", "part"]}},
            "'part' is no model family; known are cdn, mmn, snag, tan, parts; did you",
        ),
        ({**BOTH, "model.width": {**WIDTH, "when": {"model.name": "part"}}}, "'part' is never sampled"),
        ({**BOTH, "model.widht": WIDTH}, "parameters.model.widht: unknown key; did you mean model.width?"),
        ({**BOTH, "model.width": {**WIDTH, "low": 0}}, "with model.name=parts model.width=0: model.width: 0 is wrong"),
        (
            {**BOTH, "model.map.kernel_size": {**KERNELS, "when": {}}},
            "needs model.map.layers in every trial, and that has a `when`",
        ),
    ],
)
def test_wrong_spaces(tiny: Tiny, tmp_path: Path, parameters: dict[str, Any], words: str) -> None:
    assert words in refused(write_space(tmp_path, tiny(), parameters))


def test_an_unknown_family_in_the_overrides_of_a_space(tiny: Tiny, tmp_path: Path) -> None:
    parameters = {"optim.lr": {"type": "float", "low": 1e-3, "high": 1e-2}}
    path = write_space(tmp_path, tiny(), parameters, overrides={"model.name": "part"})
    assert "'part' is no model family; known are cdn, mmn, snag, tan, parts; did you mean parts?" in refused(path)
    assert "did you mean cdn" in refused(path, {"model.name": "cdm"})
    assert load_space(path, {"model.name": "parts"})[1].model.name == "parts"


def test_conditions_reach_into_families(tiny: Tiny, tmp_path: Path) -> None:
    parts = {"type": "categorical", "choices": [2, 4], "when": {"model.width": [4, 5, 6]}}
    parameters = {**BOTH, "model.map.kernel_size": KERNELS, "model.parts": parts}
    space, base = load_space(write_space(tmp_path, tiny(), parameters, constraints=["clips <= 8", "width <= 10"]))
    candidates = Candidates(space, base)
    assert candidates.points() == [
        {"model.name": "cdn", "model.map.layers": 2, "model.map.kernel_size[0]": 3, "model.map.kernel_size[1]": 3}
    ]
    assert count_points(candidates) == (10 + 2 * 3) + (2 + 4)
    seen = set()
    for point in draw(candidates, 60):
        name = point.params["model.name"]
        seen.add((name, point.verdict.reason is None))
        own = {key.partition("[")[0] for key in point.params}
        assert own <= ({"model.name", "model.width", "model.parts"} if name == "parts" else {*parameters})
        assert ("model.parts" in own) == (name == "parts" and point.params["model.width"] <= 6)
        if point.experiment is not None:
            assert point.experiment.model.name == name
    assert seen == {("cdn", True), ("parts", True), ("parts", False)}  # width <= 10 does not concern a cdn
    assert override_space(space, {"trials": 3}, base).trials == 3


def test_a_condition_on_a_fixed_key_of_another_family(tiny: Tiny, tmp_path: Path) -> None:
    parameters = {**BOTH, "model.width": {**WIDTH, "when": {"model.name": "parts", "model.parts": 8}}}
    candidates = Candidates(*load_space(write_space(tmp_path, tiny(), parameters)))
    assert candidates.names("model.width", {"model.name": "parts"}) == ["model.width"]
    assert candidates.names("model.width", {"model.name": "cdn"}) == []


# ---- training --------------------------------------------------------------------------------------------------------


def test_training_records_the_parts_of_its_loss(run: Path) -> None:
    epochs = read_metrics(run)
    assert len(epochs) == 3
    for epoch in epochs:
        assert "moment_loss" not in epoch
        assert epoch["overlap"] == epoch["loss"]
        assert EpochReport.read(epoch).losses == {"overlap": epoch["overlap"]}
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    tags = (run / "tensorboard").glob("*")
    assert any(b"train/overlap" in path.read_bytes() for path in tags)


def test_training_stops_and_goes_on_exactly(tiny: Tiny, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    reports: list[EpochReport] = []
    calls = iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        train_in(tiny(**{"model.name": "parts"}), folder, ignore, stop=lambda: next(calls) > 3)
    assert read_checkpoint(folder / LAST)["within"] is not None
    train_in(tiny(**{"model.name": "parts"}), folder, reports.append)
    values = [(epoch["loss"], epoch["overlap"], epoch["val"]) for epoch in read_metrics(run)]
    assert [(report.loss, report.losses["overlap"], report.val) for report in reports] == values


def test_memory_of_a_family_without_an_estimate_is_measured(tiny: Tiny) -> None:
    experiment = tiny(**{"model.name": "parts", "model.parts": 4, "model.width": 8})
    state = torch.get_rng_state()
    need = estimate(experiment, torch.float32, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    data = experiment.data
    assert need.weights == sum(weight.nbytes for weight in build_model(experiment).parameters())
    assert data.frames * data.feature_size * 4 > need.activations > 4 * data.feature_size * 4  # pooled frames are kept


# ---- what follows ----------------------------------------------------------------------------------------------------


def test_evaluate_predict_export_load_report(run: Path, planted: Path, tmp_path: Path) -> None:
    assert "--score-maps: model.name=parts has no score maps" in invoke("evaluate", run, "--score-maps", code=2).output
    assert not (run / "evaluation.json").exists()
    assert "Parts, best on val" in invoke("evaluate", run, "--choose-nms").output
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["models"][0]["parameters"] == sum(
        weight.numel() for weight in build_model(build(Experiment, evaluation["experiment"], "x")).parameters()
    )
    source = ("--features", planted / "vgg_rgb_features.hdf5", "--video", next(iter(_videos(planted))))
    told = json.loads(invoke("predict", run, *source, "--query", "a person opens the door", "--json").stdout)
    assert len(told["queries"][0]["moments"]) == 5  # the best of its 8 parts
    assert "a clip is" not in invoke("predict", run, *source, "--query", "a person opens the door").stdout

    out = tmp_path / "exported"
    assert "model.name=parts has no graph" in invoke("export", run, "--out", out, "--torch-export", code=2).output
    invoke("export", run, "--out", out)
    assert "A Parts model (`model.name: parts`)" in (out / "README.md").read_text()
    assert "clips" not in (out / "README.md").read_text().partition("## Limits")[2]
    features = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    for window in (None, 10.0):
        answers = [
            load(path).retrieve(features, 30.0, ["the person opens a door"], window=window) for path in (run, out)
        ]
        assert answers[0] == answers[1]
        assert answers[0][0]

    shown = invoke("report", run)
    assert "not shown" not in shown.output  # it has no score map, which is no fault
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "Parts, chosen on val" in page


def _videos(planted: Path) -> list[str]:
    import h5py

    with h5py.File(planted / "vgg_rgb_features.hdf5") as file:
        return list(file)


def test_a_checkpoint_of_a_family_that_is_not_here(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(families.ENVIRONMENT)
    line = invoke("evaluate", run, code=2).output
    assert "model.name: 'parts' is no model family; known are cdn" in " ".join(line.split())


def test_searched_against_cdn(tiny: Tiny, tmp_path: Path) -> None:
    """On real Ray: worker processes find the family by the environment that they inherit; SnAG reads sequences."""
    points = [
        {"model.name": "cdn", "model.map.layers": 1},
        {"model.name": "parts", "model.width": 6},
        {"model.name": "snag", "model.video.hidden": 8},
    ]
    plan = {"trials": 3, "keep": 3, "start_with": points, "early_stopping": {"name": "none"}}
    base = tiny(**{"train.epochs": 1, "model.map.dynamic_layers": 0, "data.sequence.length": 32})
    hidden = {"type": "categorical", "choices": [8, 16], "when": {"model.name": "snag"}}
    three = {**BOTH, "model.name": {**NAMES, "choices": ["cdn", "parts", "snag"]}, "model.video.hidden": hidden}
    space, run = write_space(tmp_path, base, three, **plan), tmp_path / "run"
    SearchSpace.model_validate(read_mapping(space), strict=False)
    command = [sys.executable, "-m", "cdn_tune", "search", str(space), "--run", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = read_record(run).entries
    assert [(entry.params["model.name"], entry.state.name) for entry in entries] == [
        ("cdn", "COMPLETE"),
        ("parts", "COMPLETE"),
        ("snag", "COMPLETE"),
    ]
    kept = {load_checkpoint(path).experiment.model.name for path in (run / "best").glob("*/checkpoint.pt")}
    assert kept == {"cdn", "parts", "snag"}
    assert "width" in invoke("leaderboard", run).output
    invoke("report", run)


@pytest.mark.usefixtures("parts")
def test_batches_of_videos_need_a_family_that_knows_them(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_of=videos: model\.name=parts does not tell which queries"):
        tiny(**{"model.name": "parts", "train.batch_of": "videos"})
