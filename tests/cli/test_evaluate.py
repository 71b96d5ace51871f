"""`cdn-tune evaluate` and `compare` as a person meets them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import cdn_tune
from cdn_tune.cli import app
from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.config.yaml import dump
from cdn_tune.errors import RunError
from cdn_tune.evaluation import evaluate as evaluation
from cdn_tune.tuning.results.record import front_trials
from cdn_tune.tuning.search import search

Tiny = Callable[..., Experiment]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the trained run is kept; empty at first."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(tiny: Tiny, finished: Path, tmp_path: Path) -> Path:
    """A finished train run."""
    if not finished.exists():
        (finished.parent / "tiny.yaml").write_text(dump(tiny(**{"train.epochs": 1}).plain()))
        assert invoke("train", finished.parent / "tiny.yaml", "--run", finished).exit_code == 0
    shutil.copytree(finished, tmp_path / "a run")
    return tmp_path / "a run"


def errors(result: Result) -> list[str]:
    assert "Traceback" not in result.output
    return [line for line in result.output.splitlines() if line.startswith(("error: ", "internal"))]


def test_evaluate_says_all_of_it(run: Path) -> None:
    result = invoke("evaluate", run, "--choose-nms", "--score-maps", "--export-format", "qvhighlights")
    assert result.exit_code == 0, result.output
    for words in (
        "CDN, best on val",
        "with 95 % intervals",
        "query-blind list",
        "above query-blind list",
        "average precision",
        "position of the moment",
        "chosen on val by R5@0.5",
        "planted data: these numbers",
        "predictions.jsonl",
        "score_maps.hdf5",
    ):
        assert words in result.output
    assert "published" not in result.output  # planted data stand beside no published number
    last = result.stdout.splitlines()[-1]
    assert last.startswith("CDN, best on val, on charades_sta, test split: R1@0.3 ")
    assert "mIoU" in last
    assert (run / "predictions-qvhighlights.jsonl").exists()
    assert "opened 2 times for this run; report the first look" in invoke("evaluate", run).output


def test_the_published_protocol_is_labelled(run: Path) -> None:
    result = invoke("evaluate", run, "--protocol", "published")
    assert result.exit_code == 0, result.output
    assert result.output.count("warning: protocol published: the epoch is chosen on the test split") == 1
    assert "published protocol: the epoch was chosen on the test split itself" in result.output
    assert "CDN, best on test" in result.output
    assert "evaluation-published.json" in result.output
    assert not (run / "evaluation.json").exists()


def test_the_published_protocol_is_warned_of_before_anything_is_done(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: object) -> None:
        raise RunError("stopped")

    monkeypatch.setattr(evaluation, "evaluate_run", stop)
    warned = "protocol published: the epoch is chosen on the test split"
    assert f"warning: {warned}" in invoke("evaluate", run, "--protocol", "published").output
    with pytest.raises(RunError, match="stopped"):
        cdn_tune.open_run(run).evaluate(protocol="published")
    assert warned in caplog.text


def test_predictions_of_a_file(run: Path, planted: Path, tmp_path: Path) -> None:
    assert invoke("evaluate", run).exit_code == 0
    file = run / "predictions.jsonl"
    result = invoke(
        "evaluate", "eval.ious=[0.3, 0.5]", "--predictions", file, "--data", planted, "--output", tmp_path / "out.json"
    )
    assert result.exit_code == 0, result.output
    assert "predictions.jsonl" in result.output
    found = json.loads((tmp_path / "out.json").read_text())
    own = json.loads((run / "evaluation.json").read_text())
    assert found["metrics"] == pytest.approx(own["metrics"], abs=1e-9)
    plain = invoke("evaluate", "eval.ious=[0.3, 0.5]", "--predictions", file, "--data", planted, "--json")
    assert json.loads(plain.stdout)["metrics"] == found["metrics"]
    assert json.loads(invoke("evaluate", run, "--json").stdout)["looks"] == 2


def test_compare_two_runs(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    for each in (run, other):
        assert invoke("evaluate", each).exit_code == 0
    result = invoke("compare", run, other)
    assert result.exit_code == 0, result.output
    for words in ("A - B", "R1@0.5", "mAP", "sign-flip", "1.0000", "planted data"):
        assert words in result.output
    plain = invoke("compare", run, other, "--json")
    assert {row["p_value"] for row in json.loads(plain.stdout)["metrics"]} == {1.0}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evaluate"], "name a run folder, or a file of predictions"),
        (["evaluate", "{run}", "model.hidden=9"], "after training only"),
        (["evaluate", "{run}", "--front"], "is a train run"),
        (["evaluate", "{run}", "--checkpoint", "none.pt"], "--checkpoint none.pt: no such file"),
        (["evaluate", "{run}", "--train-on", "train+val"], "without --seeds N"),
        (["evaluate", "{run}", "--protocol", "published", "--top", "2"], "--top does not go with"),
        (["evaluate", "{run}", "data.root=/nowhere"], "/nowhere"),
        (["evaluate", "--predictions", "none.jsonl"], "with --data DIR"),
        (["evaluate", "--predictions", "none.jsonl", "--data", "{data}"], "none.jsonl: cannot be read"),
        (["evaluate", "--predictions", "x", "--data", "{data}", "--dataset", "mine"], "--dataset mine: unknown"),
        (["evaluate", "{run}", "--predictions", "x", "--data", "{data}"], "write it as key=value"),
        (["evaluate", "eval.metric=mIoU", "--predictions", "x", "--data", "{data}"], "only eval.recalls"),
        (["evaluate", "eval.ious=[2]", "--predictions", "x", "--data", "{data}"], "write IoUs"),
        (["evaluate", "eval.recalls=[0]", "--predictions", "x", "--data", "{data}"], "write whole numbers"),
        (["evaluate", "{run}", "--split", "val"], "--split goes with --predictions FILE alone"),
        (["evaluate", "{run}", "--output", "x.json"], "--output goes with --predictions FILE alone"),
        (["evaluate", "{run}", "--data", "{data}"], "--data goes with --predictions FILE alone"),
        (["evaluate", "{run}", "--dataset", "jsonl"], "--dataset goes with --predictions FILE alone"),
        (["evaluate", "--predictions", "x", "--data", "{data}", "--reject"], "--reject does not go with --predictions"),
        (["evaluate", "--predictions", "x", "--data", "{data}", "--seeds", "2"], "--seeds does not go with"),
        (["evaluate", "--predictions", "x", "--data", "{data}", "--checkpoint", "y"], "--checkpoint does not go with"),
        (["evaluate", "--predictions", "x", "--data", "{data}", "--other-data"], "--other-data does not go with"),
        (["compare", "{run}", "/nowhere"], "is not evaluated yet"),
        (["compare", "/nowhere", "{run}"], "/nowhere: no such run folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(run: Path, planted: Path, arguments: list[str], told: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    result = invoke(*(argument.format(run=run, data=planted) for argument in arguments))
    assert result.exit_code == 2, result.output
    (line,) = errors(result)
    assert told in line
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_a_damaged_checkpoint_is_told_and_nothing_is_written(run: Path) -> None:
    (run / "checkpoints/best.pt").write_bytes(b"x")
    result = invoke("evaluate", run)
    assert result.exit_code == 2
    assert "damaged" in errors(result)[0]
    assert not (run / "looks.jsonl").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_the_front_of_a_finished_search_is_measured(tiny: Tiny, tmp_path: Path) -> None:
    space = SearchSpace.model_validate(
        {
            "name": "front",
            "experiment": "tiny",
            "objectives": ["R1@0.5", "parameters"],
            "parameters": {"model.hidden": {"type": "categorical", "choices": [4, 8]}},
            "sampler": {"name": "grid"},
            "early_stopping": {"name": "none"},
            "trials": 2,
            "keep": 2,
        }
    )
    search(space, tiny(**{"train.epochs": 1}), tmp_path / "run", lambda _: None)
    front = front_trials(tmp_path / "run")
    result = invoke("evaluate", tmp_path / "run", "--front")
    assert result.exit_code == 0, result.output
    models = json.loads((tmp_path / "run" / "evaluation.json").read_text())["models"]
    assert sorted(model["checkpoint"] for model in models) == [
        f"best/trial-{at:04d}/checkpoint.pt" for at in sorted(front)
    ]
    if len(front) > 1:
        assert all(f"{model['parameters']:,} parameters" in result.output for model in models)
        assert "to pick one here is to tune on test" in result.output
