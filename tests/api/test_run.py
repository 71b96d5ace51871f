"""`cdn_tune.open_run`: what a run folder shows from Python."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas
import pytest

import cdn_tune
from cdn_tune.config import Experiment
from cdn_tune.errors import CdnTuneError, ConfigError, DataError, RunError
from cdn_tune.tuning.results.leaderboard import json_text
from cdn_tune.tuning.results.record import read_record

Tiny = Callable[..., Experiment]
Entry = Callable[..., Any]
MakeSearch = Callable[..., Path]


@pytest.fixture
def searched(make_search: MakeSearch, entry: Entry) -> Path:
    """A search on record: a best trial, one with other parameters, a refused one, one that runs."""
    entries = [
        entry("complete", [0.2, 0.4], lr=1e-2),
        entry("complete", [0.1, 0.6], steps=2, kernels=[3, 5]),
        entry("pruned", [0.3]),
        entry("running", [0.1]),
    ]
    return make_search(entries, metric="R1@0.5")


def test_the_leaderboard_is_the_file_s(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = cdn_tune.open_run(searched)
    rows = json.loads(json_text(read_record(searched).rows()))
    table = run.leaderboard()
    assert isinstance(table, pandas.DataFrame)
    assert list(table["trial"])[:3] == [1, 0, 2]
    assert table["value"].dtype == float
    assert [row.dropna().drop("model.map.kernel_size").to_dict() for _, row in table.iterrows()] == [
        {key: value for key, value in row.items() if key != "model.map.kernel_size"} for row in rows
    ]
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert run.leaderboard() == rows


def test_the_study_is_optuna_s_and_for_reading(searched: Path) -> None:
    before = {path: path.read_bytes() for path in searched.iterdir() if path.is_file()}
    study = cdn_tune.open_run(searched).study
    assert isinstance(study, optuna.Study)
    assert (study.study_name, study.user_attrs["metric"]) == ("tiny-search", "R1@0.5")
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3]
    assert (study.best_trial.number, study.best_value) == (1, 0.6)
    assert study.trials_dataframe()["number"].tolist() == [0, 1, 2, 3]
    assert [trial.state.name for trial in study.get_trials(states=[optuna.trial.TrialState.PRUNED])] == ["PRUNED"]
    rates = optuna.visualization.plot_slice(study, params=["optim.lr"]).data[0].x  # of complete trials
    assert sorted(rates) == [1e-3, 1e-2]
    for write in (
        study.ask,
        lambda: study.enqueue_trial({"optim.lr": 0.1}),
        lambda: study.add_trial(study.trials[0]),
        lambda: study.set_user_attr("a", 1),
        lambda: study.optimize(lambda _: 0.0, n_trials=1),
    ):
        with pytest.raises(RunError, match="its study is for reading"):
            write()
    assert {path: path.read_bytes() for path in searched.iterdir() if path.is_file()} == before


def test_the_best_of_a_search(searched: Path, tiny: Tiny) -> None:
    best = cdn_tune.open_run(str(searched)).best
    assert (best.metric, best.value, best.epoch, best.trial, best.mean) == ("R1@0.5", 0.6, 2, 1, None)
    assert best.checkpoint == searched / "best/trial-0001/checkpoint.pt"
    assert best.params is not None
    assert best.params["model.map.kernel_size[1]"] == 5
    assert best.experiment.model.plain()["map"]["kernel_size"] == [3, 5]


def test_epochs_of_a_trial(searched: Path, trained: Path) -> None:
    folder = searched / "trials/0001"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_bytes((trained / "metrics.jsonl").read_bytes())
    run = cdn_tune.open_run(searched)
    assert run.epochs(1).equals(cdn_tune.open_run(trained).epochs())
    assert len(run.epochs(trial=0)) == 0
    with pytest.raises(RunError, match="has no trial 9"):
        run.epochs(9)
    with pytest.raises(ConfigError, match=r"is a search; name one of its trials, as epochs\(trial=0\)"):
        run.epochs()


def test_a_train_run(trained: Path) -> None:
    run = cdn_tune.open_run(trained)
    epochs = run.epochs()
    assert list(epochs["epoch"]) == [1, 2]
    assert {"loss", "val R1@0.5", "learning_rate"} <= set(epochs.columns)
    assert run.best.value == epochs["val R1@0.5"].max()
    assert (run.best.trial, run.best.params) == (None, None)
    assert cdn_tune.load(run.best.checkpoint).experiment == run.best.experiment == run.experiment
    for read in (lambda: run.study, run.leaderboard, lambda: run.space):
        with pytest.raises(RunError, match=r"is a train run, which has no .*; open a search run's folder"):
            read()
    with pytest.raises(ConfigError, match=r"trial=0: .* is a train run; leave it out"):
        run.epochs(0)


def test_evaluation_and_predictions(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, stages = cdn_tune.open_run(trained), list[str]()
    assert run.evaluation is None
    with pytest.raises(DataError, match="cdn-tune evaluate RUN"):
        run.predictions()
    result = run.evaluate(choose_nms=True, on_stage=stages.append)
    assert run.evaluation == json.loads((trained / "evaluation.json").read_text())
    assert run.evaluation is not None
    assert run.evaluation["metrics"] == result["metrics"]
    assert stages[-1] == "resampling"
    found = run.predictions()
    assert len(found) == result["queries"]
    assert found["iou"].mean() == pytest.approx(result["metrics"]["mIoU"])
    assert not caplog.records
    assert run.evaluate()["looks"] == 2
    assert "the test split was opened 2 times for this run" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"top": 0}, "top=0 is wrong: give a whole number from 1"),
        ({"seeds": -1}, "seeds=-1 is wrong: give a whole number from 0"),
        ({"protocol": "nice"}, "protocol='nice' is wrong: give honest or published"),
        ({"train_on": "val"}, "train_on='val' is wrong: give train or train+val"),
        ({"formats": ["csv"]}, "formats=['csv'] is wrong: give a list of qvhighlights or charades_sta"),
        ({"formats": 5}, "formats=5 is wrong: give a list of qvhighlights or charades_sta"),
        ({"front": "yes"}, "front='yes' is wrong: give True or False"),
        ({"address": 5}, "address=5 is wrong: give a text"),
        ({"checkpoint": 5}, "checkpoint=5 is wrong: give a path"),
        ({"train_on": "train+val"}, "train_on=train+val: nothing is trained again without seeds=N; add"),
        ({"overrides": {"model.hidden": 9}}, "override model.hidden=9: after training only data.root"),
        ({"overrides": "data.root=x"}, "overrides: 'data.root=x' is wrong"),
        ({"checkpoint": "nowhere.pt"}, "checkpoint=nowhere.pt: no such file"),
        ({"protocol": "published", "top": 2}, "top does not go with protocol published, which chooses on test"),
        ({"choose_nms": True, "protocol": "published"}, "choose_nms does not go with protocol published"),
        ({"front": True}, "is a train run"),
    ],
)
def test_wrong_arguments_open_no_test_split(trained: Path, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(CdnTuneError) as caught:
        cdn_tune.open_run(trained).evaluate(**arguments)
    assert told in str(caught.value)
    assert not (trained / "looks.jsonl").exists()


def test_what_is_no_run_is_refused(tmp_path: Path, make_search: MakeSearch, entry: Entry) -> None:
    for path, told in (
        (tmp_path / "nowhere", "no such run folder"),
        (tmp_path, "is not a run folder"),
        (3, "path=3 is wrong: give a path"),
        ("x" * 5000, "xx: File name too long; give another path"),
        ("s3://bucket", "names no folder in a bucket"),
    ):
        with pytest.raises(CdnTuneError, match=told):
            cdn_tune.open_run(path)  # type: ignore[arg-type]
    run = cdn_tune.open_run(make_search([entry("running")]))
    assert repr(run) == f"Run({str(run.path)!r})"
    assert list(run.leaderboard()["state"]) == ["running"]
    with pytest.raises(RunError, match="no trial has ended with a value yet"):
        _ = run.best
