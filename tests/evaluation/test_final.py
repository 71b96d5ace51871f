"""The final word: the best checkpoint by val, measured on test, once, beside what needs no model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cdn_tune.config import Experiment
from cdn_tune.data.dataset import load_split
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.data.planted import plant
from cdn_tune.errors import CheckpointError, ConfigError, RunError
from cdn_tune.evaluation.best import choose_best
from cdn_tune.evaluation.final import evaluate_run
from cdn_tune.training.checkpoint import build_model, load_checkpoint, save_checkpoint
from cdn_tune.training.evaluation import evaluate_split
from cdn_tune.training.launch import train_in
from cdn_tune.training.loop import BEST
from cdn_tune.training.manifest import describe_run
from cdn_tune.training.report import ignore
from cdn_tune.training.run_folder import claim, locked

Tiny = Callable[..., Experiment]


@pytest.fixture
def trained(tiny: Tiny, tmp_path: Path) -> Path:
    """A finished train run."""
    experiment = tiny(**{"train.epochs": 2})
    run = tmp_path / "run"
    with locked(run):
        claim(
            run,
            describe_run("train", experiment, fingerprint(experiment.data)),
            {"experiment.yaml": experiment.plain()},
        )
        train_in(experiment, run, ignore)
    return run


def test_evaluation_of_a_train_run(trained: Path) -> None:
    result = evaluate_run(trained)
    assert json.loads((trained / "evaluation.json").read_text()) == result
    assert (result["schema"], result["split"], result["dataset"], result["planted"]) == (
        1,
        "test",
        "charades_sta",
        True,
    )
    checkpoint = load_checkpoint(trained / BEST)
    test = load_split(checkpoint.experiment.data, "test")
    assert result["queries"] == len(test)
    assert result["metrics"] == evaluate_split(checkpoint.model, test, checkpoint.experiment.eval).metrics
    assert set(result["baselines"]) == {"best_constant", "random"}
    assert 0 <= result["baselines"]["best_constant"]["metrics"]["R1@0.5"] <= 1
    assert result["chosen_by"]["split"] == "val"
    assert result["looks"] == 1
    assert evaluate_run(trained)["looks"] == 2


def test_metrics_do_not_depend_on_the_batch_size(trained: Path) -> None:
    first = evaluate_run(trained)["metrics"]
    assert evaluate_run(trained, {"eval.batch_size": 3})["metrics"] == first


def test_moved_data_are_named_by_an_override(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="elsewhere"):
        evaluate_run(trained, {"data.root": str(tmp_path / "elsewhere")})
    assert not (trained / "evaluation.json").exists()


def test_overrides_that_change_the_model_are_refused(trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.hidden=9: after training only data\.root"):
        evaluate_run(trained, {"model.hidden": 9})


def test_best_by_val_and_damaged_gives_way(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny()
    with locked(tmp_path):
        claim(tmp_path, {"kind": "search"}, {})
    state = build_model(experiment).state_dict()
    for number, value in enumerate([0.2, 0.9, 0.5]):
        path = tmp_path / "best" / f"trial-{number:04d}" / "checkpoint.pt"
        save_checkpoint(path, experiment, {"model": state, "epoch": 1, "val": {"R1@0.5": value}, "planted": True})
    assert choose_best(tmp_path).checkpoint.path.parent.name == "trial-0001"
    (tmp_path / "best/trial-0001/checkpoint.pt").write_bytes(b"x")
    choice = choose_best(tmp_path)
    assert choice.checkpoint.path.parent.name == "trial-0002"
    assert "trial-0001" in choice.damaged[0]
    for number in (0, 2):
        (tmp_path / f"best/trial-{number:04d}/checkpoint.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        choose_best(tmp_path)


def test_run_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        choose_best(tmp_path / "x")
    with locked(tmp_path):
        claim(tmp_path, {"kind": "search"}, {})
    with pytest.raises(RunError, match="no checkpoint of a finished epoch"):
        choose_best(tmp_path)


@pytest.mark.parametrize("key", ["eval.metric", "eval.nms_threshold", "data.frames", "data.val_fraction"])
def test_what_was_chosen_on_val_stays(trained: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="after training only"):
        evaluate_run(trained, {key: 0.1})


def test_every_look_is_kept(trained: Path) -> None:
    first = evaluate_run(trained)
    evaluate_run(trained, {"eval.batch_size": 9})
    assert json.loads((trained / "evaluation-look-1.json").read_text()) == first
    assert json.loads((trained / "evaluation.json").read_text())["looks"] == 2


def test_other_data_are_told(trained: Path, tmp_path: Path) -> None:
    plant(tmp_path / "other", videos=24, feature_size=16, word_size=12, frame_rate=2.0, seed=2)
    result = evaluate_run(trained, {"data.root": str(tmp_path / "other")})
    assert "charades_sta_test.txt" in result["data_changed"]
    assert "vgg_rgb_features.hdf5" in result["data_changed"]


def test_moved_data_are_the_same_data(trained: Path, planted: Path, tmp_path: Path) -> None:
    shutil.copytree(planted, tmp_path / "moved")
    result = evaluate_run(trained, {"data.root": str(tmp_path / "moved")})
    assert result["data_changed"] == []
