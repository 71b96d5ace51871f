"""Runs made by version 0.1.0, before the study was a journal and families were a choice: read, gone on with, evaluated.

`tests/fixtures/make_runs.py` made them: a finished and evaluated search, one killed with two trials under way, a
trained and evaluated experiment, an export.
"""

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import cdn_tune
from cdn_tune.cli import app
from cdn_tune.data.planted import plant
from cdn_tune.training.runs.checkpoint import DIGEST, digest
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.study.ranking import own

from .fixtures.make_runs import PLANT

RUNS = Path(__file__).parent / "fixtures" / "runs-0.1.0.tar.xz"
MADE_IN = "/tmp/oldruns"  # noqa: S108 - the folder of those days, in texts and checkpoints
TEXTS = {".yaml", ".json", ".jsonl"}


def invoke(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of those days: planted anew, byte for byte where fingerprints are concerned."""
    root = tmp_path_factory.mktemp("old") / "data"
    plant(root, **PLANT)  # type: ignore[arg-type]
    return root


@pytest.fixture
def runs(data: Path, tmp_path: Path) -> Path:
    """The runs as if they had been made in this folder."""
    with tarfile.open(RUNS) as archive:
        archive.extractall(tmp_path, filter="data")
    for path in tmp_path.rglob("*"):
        if path.suffix in TEXTS and "exported" not in path.parts:
            text = path.read_text(encoding="utf-8").replace(f"{MADE_IN}/data", str(data))
            path.write_text(text.replace(MADE_IN, str(tmp_path)), encoding="utf-8")
        elif path.suffix == ".pt":
            content = torch.load(path, weights_only=True)
            content["experiment"]["data"]["root"] = str(data)
            del content[DIGEST]
            torch.save({**content, DIGEST: digest(content)}, path)
    return tmp_path


def files(folder: Path) -> dict[str, str]:
    """The digest of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_finished_search_is_read_without_a_trace(runs: Path) -> None:
    run = runs / "finished"
    before = files(run)
    shown = invoke("leaderboard", run).output
    assert "complete" in shown
    assert "1 complete, 4 pruned" in shown
    status = invoke("search", "status", run).output
    assert "5 of 5" in status or "finished" in status
    assert files(run) == before


def test_a_finished_search_is_evaluated_and_reported(runs: Path) -> None:
    run = runs / "finished"
    first = json.loads((run / "evaluation.json").read_text())
    invoke("evaluate", run)
    second = json.loads((run / "evaluation.json").read_text())
    assert first["models"][0]["metrics"].items() <= second["models"][0]["metrics"].items()
    assert len((run / "looks.jsonl").read_text().splitlines()) == 2
    invoke("report", run)
    assert "trial 0" in (run / "report" / "index.html").read_text()


@pytest.mark.usefixtures("ray_session")
def test_a_killed_search_goes_on_in_its_old_storage(runs: Path) -> None:
    run = runs / "killed"
    before = {trial.number: trial for trial in own(read_record(run).entries)}
    assert [trial.state.name for trial in before.values()] == ["RUNNING", "PRUNED", "RUNNING"]
    reached = dict(before[0].intermediate_values)
    invoke("search", runs / "space-killed" / "space.yaml", "--run", run, "--trials", "4")
    after = {trial.number: trial for trial in own(read_record(run).entries)}
    assert sorted(after) == [0, 1, 2, 3]
    assert all(trial.state.name in ("COMPLETE", "PRUNED") for trial in after.values())
    assert all(after[number].params == before[number].params for number in before)
    assert reached.items() <= after[0].intermediate_values.items()
    epochs = [json.loads(line)["epoch"] for line in (run / "trials/0000/metrics.jsonl").read_text().splitlines()]
    assert epochs == sorted(set(epochs)), "an epoch with a checkpoint was trained again"
    assert not (run / "study.journal").exists()


def test_a_trained_run_is_finished_evaluated_and_reported(runs: Path) -> None:
    assert "run is finished" in invoke("train", runs / "tiny.yaml", "--run", runs / "trained").output
    first = json.loads((runs / "trained" / "evaluation.json").read_text())
    invoke("evaluate", runs / "trained")
    second = json.loads((runs / "trained" / "evaluation.json").read_text())
    assert first["models"][0]["metrics"].items() <= second["models"][0]["metrics"].items()
    invoke("report", runs / "trained")
    assert (runs / "trained" / "report" / "index.html").exists()


def test_an_export_still_loads(runs: Path) -> None:
    features = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
    moments = cdn_tune.load(runs / "exported").retrieve(features, 20.0, ["he takes out a knife"], top=3)
    assert 1 <= len(moments[0]) <= 3
    assert all(0.0 <= moment.start < moment.end <= 20.0 for moment in moments[0])
