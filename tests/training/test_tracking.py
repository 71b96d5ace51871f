"""Runs logged to MLflow: each once, nothing lost while it is away, and a run that never waits for it."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.config import Experiment
from cdn_tune.config.tracking import TrackingConfig
from cdn_tune.distributed.train_run import train_run
from cdn_tune.errors import ConfigError
from cdn_tune.training.object_store.working_copy import place_of, working_copy
from cdn_tune.training.reports import EpochReport
from cdn_tune.training.runs.files import write_json
from cdn_tune.training.runs.records import METRICS
from cdn_tune.training.runs.run_folder import read_manifest
from cdn_tune.training.tracking import mlflow_store
from cdn_tune.training.tracking.client_settings import SETTINGS, client_settings
from cdn_tune.training.tracking.mlflow_store import MlflowStore
from cdn_tune.training.tracking.tracked_run import STATUS, Point, TrackedRun, points
from cdn_tune.training.tracking.tracker import Tracker
from cdn_tune.training.tracking.train_tracking import TrainTracking
from tests.mlflow_server import Mlflow, mlflow_server
from tests.object_store import Store

__all__ = ["mlflow_server"]
pytestmark = pytest.mark.filterwarnings("default")  # what MLflow warns of within
LONG = 60.0


def report(epoch: int, epochs: int = 4) -> EpochReport:
    val = {"R1@0.5": epoch / 10, "mIoU": epoch / 20}
    best = {"value": epoch / 10, "best_value": epoch / 10, "best_epoch": epoch}
    loss = float("inf") if epoch == 1 else 1 / epoch
    return EpochReport(epoch, epochs, loss, {"bce": 1 / epoch}, 1e-3, 1.0, 10.0, 2.0, 1.0, val, **best)


def test_a_request_holds_what_mlflow_takes_at_once() -> None:
    """Or its client would make several, the tag that tells how far it is logged with the first."""
    found = [Point(step, None, dict.fromkeys(map(str, range(9 if step % 2 else 25)), 0.5)) for step in range(200)]
    batches = list(mlflow_store._batches(found))
    assert [point for batch in batches for point in batch] == found
    assert max(sum(len(point.values) for point in batch) for batch in batches) < 1000
    assert len(batches) == 4


def trial(folder: Path, epochs: int, state: str = "running", key: str = "trial 0") -> TrackedRun:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(report(epoch).plain()) for epoch in range(1, epochs + 1)]
    (folder / METRICS).write_text("".join(f"{line}\n" for line in lines))
    params = {"optim.lr": "0.003", "model.map.kernel_size": "[3, 5]"}
    return TrackedRun(
        key, key, state, STATUS[state], epochs, "R1@0.5", "search", {"data": "planted"}, params, 10_000, folder=folder
    )


def search(ended: int = 0, state: str = "running") -> TrackedRun:
    return TrackedRun("search", "a search", state, STATUS[state], ended, "R1@0.5", values={"best/R1@0.5": 0.1 * ended})


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of MLflow's own in a file; to create it takes seconds."""
    pytest.importorskip("mlflow")
    return tmp_path_factory.mktemp("mlflow") / "mlflow.db"


@pytest.fixture
def sqlite(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingConfig:
    """An experiment in that store."""
    monkeypatch.chdir(tmp_path)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    return TrackingConfig(mlflow=f"sqlite:///{database}", experiment=tmp_path.name)


def client(config: TrackingConfig) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=config.mlflow)


def logged(config: TrackingConfig) -> dict[str, Any]:
    found = client(config).search_runs([client(config).get_experiment_by_name(config.experiment).experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def test_runs_are_logged_once_whoever_goes_on(sqlite: TrackingConfig, tmp_path: Path) -> None:
    first = Tracker(sqlite, "abc")
    first.offer([search(), trial(tmp_path / "0", 1)])
    assert "MLflow: sqlite" in first.close([search(), trial(tmp_path / "0", 2)], {}, LONG)
    for state, status in (("failed", "FAILED"), ("running", "RUNNING")):  # it goes on
        Tracker(sqlite, "abc").close([search(1, state)], {}, LONG)
        assert logged(sqlite)["a search"].info.status == status
    ends = [search(2, "complete"), trial(tmp_path / "0", 4, "complete"), trial(tmp_path / "1", 1, "pruned", "trial 1")]
    for _ in range(2):  # the second finds everything there
        again = Tracker(sqlite, "abc")
        again.close(ends, {"best/experiment.yaml": "a: 1\n", "gone.csv": tmp_path / "gone.csv"}, LONG)
        assert again.is_complete
    runs = logged(sqlite)
    assert set(runs) == {"a search", "trial 0", "trial 1"}
    parent, one, other = (runs[name] for name in ("a search", "trial 0", "trial 1"))
    assert [run.info.status for run in (parent, one, other)] == ["FINISHED", "FINISHED", "KILLED"]
    assert one.data.tags["mlflow.parentRunId"] == other.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert one.data.params == {"optim.lr": "0.003", "model.map.kernel_size": "[3, 5]"}
    assert one.data.tags["data"] == "planted"
    assert parent.data.metrics == {"best/R1_at_0.5": 0.2}
    history = client(sqlite).get_metric_history(one.info.run_id, "val/R1_at_0.5")
    assert [(each.step, each.value) for each in history] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert [each.timestamp for each in history] == [13_000, 16_000, 19_000, 22_000]
    steps = [each.step for each in client(sqlite).get_metric_history(one.info.run_id, "train/loss")]
    assert steps == [2, 3, 4], "what is not finite is left out"
    assert [file.path for file in client(sqlite).list_artifacts(parent.info.run_id, "best")] == ["best/experiment.yaml"]
    other_run = Tracker(sqlite, "def")
    other_run.close([search()], {}, LONG)
    assert len(client(sqlite).search_runs([parent.info.experiment_id])) == 4, "another run folder is another run"


def test_a_deleted_experiment_is_told_and_the_run_goes_on(
    sqlite: TrackingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    number = client(sqlite).create_experiment(sqlite.experiment)
    client(sqlite).delete_experiment(number)
    tracker = Tracker(sqlite, "abc")
    assert "not everything is logged there" in tracker.close([search()], {}, LONG)
    assert f"mlflow experiments restore --experiment-id {number}" in caplog.text
    client(sqlite).restore_experiment(number)
    tracker = Tracker(sqlite, "abc")
    tracker.close([search()], {}, LONG)
    assert tracker.is_complete


class Absent:
    """A store that is away for a while: what `MlflowStore` is to a tracker."""

    def __init__(self, times: int) -> None:
        self.times, self.asked = times, threading.Event()
        self.log_of: list[str] = []

    def __call__(self, *_: object) -> Any:
        self.asked.set()
        self.times -= 1
        if self.times >= 0:
            raise OSError(f"{'<html>' * 10_000}")
        return self

    def log(self, run: TrackedRun, patient: bool) -> None:  # noqa: ARG002
        self.log_of.append(f"{run.key} {run.steps}")

    def add(self, *_: object) -> None:
        """Takes files."""

    def url(self, _: str) -> str:
        return "there"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdn_tune.training.tracking.tracker.check_installed", lambda: None)


def test_what_was_offered_meanwhile_is_logged_once_it_answers(
    installed: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdn_tune.training.tracking.tracker._FIRST_PAUSE", 0.01)
    store = Absent(3)
    tracker = Tracker(TrackingConfig(mlflow="http://host"), "abc", connect=store)
    tracker.offer([search(0)])
    assert store.asked.wait(LONG)
    tracker.offer([search(1)])
    until = time.monotonic() + LONG
    while not store.log_of and time.monotonic() < until:
        time.sleep(0.01)
    assert tracker.close([search(2)], {}, LONG) == "MLflow: there"
    assert store.log_of[-1] == "search 2"
    warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(warnings) == 1, "it is said once"
    assert len(warnings[0].getMessage()) < 400


def test_the_process_has_its_own_settings_again(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook that uses MLflow for itself: its variables, and the levels of its loggers."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    before, loggers = dict(os.environ), [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    seen: list[dict[str, str]] = []

    def connect(*_: object) -> Any:
        client_settings.silence()
        seen.append(dict(os.environ))
        assert [logger.level for logger in loggers] == [logging.ERROR] * 2
        return Absent(0)

    with client_settings:  # of another tracker
        tracker = Tracker(TrackingConfig(mlflow="http://host"), "abc", connect=connect)
        tracker.close([search()], {}, LONG)
        tracker._thread.join(LONG)
        assert dict(os.environ) == seen[0], "the other one is at work"
    assert tracker.is_complete
    assert seen[0] == {**SETTINGS, **before}
    assert dict(os.environ) == before
    assert [logger.level for logger in loggers] == levels


def test_nothing_waits_for_one_that_hangs(installed: None) -> None:
    hanging, free = threading.Event(), threading.Event()

    def connect(*_: object) -> Any:
        hanging.set()
        free.wait(LONG)
        raise OSError("late")

    tracker = Tracker(TrackingConfig(mlflow="http://host"), "abc", connect=connect)
    for ended in range(1000):
        tracker.offer([search(ended)])
    assert hanging.wait(LONG)
    assert "not everything is logged there; the same command" in tracker.close([search(2)], {}, 0.01)
    free.set()
    tracker._thread.join(LONG)
    assert not tracker._thread.is_alive()


def test_a_missing_client_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mlflow" else found(name))
    with pytest.raises(ConfigError, match=r"pip install 'cdn-tune\[mlflow\]'"):
        Tracker(TrackingConfig(mlflow="http://host"), "abc")


def test_records_that_are_damaged_are_as_far_as_they_can_be_read(tmp_path: Path) -> None:
    run = trial(tmp_path / "0", 3)
    with (tmp_path / "0" / METRICS).open("a") as file:
        file.write('{"epoch": 4, "loss"')
    assert [point.step for point in points(run, 1)] == [2, 3]


@pytest.mark.slow
def test_a_server_that_fails_in_every_way(
    mlflow_server: Mlflow, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the real one: refused, 500, a page in place of an answer, and too slow; then everything is there, once."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setattr("cdn_tune.training.tracking.tracker._FIRST_PAUSE", 0.1)
    config, proxy = TrackingConfig(mlflow=mlflow_server.uri), mlflow_server.proxy

    def ended(state: str, epochs: int) -> bool:
        tracker = Tracker(config, "abc")
        runs = [search(epochs, state), trial(tmp_path / "0", epochs, state)]
        tracker.offer(runs)
        tracker.close(runs, {"a.txt": "b"}, LONG)
        return tracker.is_complete

    for answer in ((500, "text/plain", b"no"), (200, "text/html", b"<html>login</html>"), (401, "text/html", b"<p>")):
        proxy.fail, proxy.answer = 10**6, answer
        assert not ended("running", 1)
    proxy.heal()
    proxy.delay = 8.0
    assert not ended("running", 2)
    proxy.heal()
    mlflow_server.server.stop()
    assert not ended("running", 2)
    assert "does not answer" in caplog.text
    mlflow_server.server.start()
    proxy.share = 0.2
    for _ in range(50):
        if ended("complete", 4):
            break
    proxy.heal()
    runs = mlflow_server.runs()
    assert set(runs) == {"a search", "trial 0"}
    history = mlflow_server.client().get_metric_history(runs["trial 0"].info.run_id, "val/R1_at_0.5")
    assert [(each.step, each.value) for each in history] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert runs["trial 0"].info.status == "FINISHED"
    store = MlflowStore(config, "abc")
    assert store.url("search") == f"{config.mlflow}/#/experiments/{runs['a search'].info.experiment_id}/runs/" + (
        runs["a search"].info.run_id
    )


def test_records_of_a_trial_on_an_object_store_are_read_there(store: Store, tmp_path: Path) -> None:
    folder = working_copy(f"{store.url()}#trials/0003")
    assert mlflow_store._records(folder) == []
    place = place_of(folder)
    assert place is not None
    trial(tmp_path / "0", 2)
    place.store.write(f"trials/0003/{METRICS}", (tmp_path / "0" / METRICS).read_bytes())
    assert [epoch["epoch"] for epoch in mlflow_store._records(folder)] == [1, 2]


@pytest.mark.parametrize("begun_before", [False, True])
def test_the_id_of_a_training_is_on_the_store_before_it_is_logged(
    begun_before: bool, store: Store, tiny: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that whoever goes on with one that was killed, on another machine too, logs it as the same run."""
    named: list[str] = []
    monkeypatch.setattr(Tracker, "__init__", lambda _, config, run_id: named.append(run_id))  # noqa: ARG005
    url, experiment = store.url(), tiny(**{"tracking.mlflow": "http://host"})
    if begun_before:  # by a version that gave no id to trainings that were not logged
        with train_run(experiment, Path(url)) as run:
            manifest = read_manifest(run.folder)
            del manifest["run_id"]
            write_json(run.folder / "manifest.json", manifest)
    with train_run(experiment, Path(url)) as run:
        place = place_of(run.folder)
        assert place is not None
        TrainTracking(experiment, run.folder)
        assert json.loads(place.store.read("manifest.json") or b"")["run_id"] == named[0]
