"""How a search stands, seen from outside, and what optuna-dashboard shows of the same record."""

import fcntl
import json
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
import pytest
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.cli.search.status import _facts
from cdn_tune.errors import RunError
from cdn_tune.tuning.layout import JOURNAL
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.results.status import ahead, eta_seconds, is_held, status_of

Entry = Callable[..., FrozenTrial]
MakeSearch = Callable[..., Path]


def make_entries(entry: Entry) -> list[FrozenTrial]:
    return [
        entry("complete", [0.2, 0.4, 0.3], kernels=[3, 5], segments=[["a", 0.0, 36.0]]),
        entry("pruned", [0.1], reason="stopped early after epoch 1", segments=[["b", 0.0, 36.0]]),
        entry("failed", reason="out of memory", failure="memory"),
        entry("failed", role="refused", reason="parameters <= 4e8 does not hold"),
        entry("complete", [0.4], role="copy", copy_of=0),
        entry("complete", [0.3, 0.3, 0.3], retry_of=2),
        entry("running", [0.1, 0.2], steps=2),
        entry("running"),
    ]


def test_a_running_search(make_search: MakeSearch, entry: Entry) -> None:
    run = make_search(
        make_entries(entry),
        trials=10,
        searched_seconds=360.0,
        gpus_per_trial=0.5,
        planted=True,
    )
    with FileLock(run / ".lock"):
        status = status_of(run)
    assert (status.is_alive, status.stop_asked, status.asked, status.planted) == (True, False, 10, True)
    assert status.counts == {"complete": 2, "pruned": 1, "failed": 1, "running": 2, "refused": 1, "copy": 1}
    assert status.ended == 3  # the one that was tried again counts once
    assert status.failures == {"memory": 1}
    assert status.best is not None
    assert (status.best["trial"], status.best["value"], status.best["model.map.kernel_size"]) == (0, 0.4, [3, 5])
    assert status.trials_per_hour == pytest.approx(30)
    assert status.samples_per_second == 50.0
    assert status.gpu_hours == pytest.approx(0.5 * (36 + 36 + 30 + 20) / 3600, abs=1e-4)
    first, second = status.running
    assert (first.trial, first.epoch, first.epochs, first.value) == (6, 2, 3, 0.2)
    assert first.parameters["model.attention_steps"] == 2
    assert (second.epoch, second.value) == (0, None)
    assert status.eta_seconds is not None
    assert json.loads(json.dumps(status.plain()))["best"]["trial"] == 0


def test_an_ended_search_and_one_asked_to_stop(make_search: MakeSearch, entry: Entry) -> None:
    run = make_search(make_entries(entry), trials=3)
    (run / ".lock").touch()
    (run / ".stop").touch()
    status = status_of(run)
    shown = dict(_facts(status))
    assert "2 unfinished" in shown["trials"]
    assert "running" not in shown["trials"]
    assert "GPU-hours" not in shown  # without a GPU
    assert (status.is_alive, status.stop_asked, status.eta_seconds) == (False, True, None)
    assert status.samples_per_second is None  # nobody trains


def test_a_running_trial_that_is_ahead_of_the_best(make_search: MakeSearch, entry: Entry) -> None:
    ended = [entry("complete", [0.3])]
    status = status_of(make_search([*ended, entry("running", [0.2, 0.5, 0.4]), entry("running", [0.4])]))
    assert status.best is not None
    assert (status.best["trial"], status.ahead, status.plain()["ahead"]) == (0, 1, 1)
    shown = dict(_facts(status))
    assert shown["best"].startswith("val R1@0.5 0.3000, trial 0, epoch 1: lr=")
    assert shown["ahead"].startswith("val R1@0.5 0.5000, trial 1, running, epoch 3: lr=")
    first = [{"rank": 1, "state": "complete", "value": 0.3}, {"rank": "", "state": "running", "value": 0.3}]
    assert ahead(first) is None
    assert ahead(first[1:]) == first[1]  # before any has ended


def test_a_search_without_trials(make_search: MakeSearch) -> None:
    status = status_of(make_search([]))
    assert (status.ended, status.best, status.trials_per_hour, status.eta_seconds) == (0, None, None, None)
    assert status.counts == {}


def test_several_objectives(make_search: MakeSearch, entry: Entry) -> None:
    trials = [
        entry("complete", [0.5], values=[0.5, 300.0], parameters=300),
        entry("complete", [0.4], values=[0.4, 100.0], parameters=100),
        entry("complete", [0.3], values=[0.3, 200.0], parameters=200),
    ]
    both = ["R1@0.5", "parameters"]
    run = make_search(trials, space={"objectives": both}, directions=["maximize", "minimize"], objectives=both)
    status = status_of(run)
    assert status.objectives == {"R1@0.5": "maximize", "parameters": "minimize"}
    assert [row["trial"] for row in status.front] == [0, 1]


def test_the_last_report_is_seen_in_the_trials_folder(make_search: MakeSearch, entry: Entry) -> None:
    run = make_search([entry("running", [0.1], segments=[["a", 0.0, 10.0]])])
    record = run / "trials" / "0000" / "metrics.jsonl"
    record.parent.mkdir(parents=True)
    record.touch()
    silent = status_of(run).running[0].silent_seconds
    assert silent is not None
    assert silent < 1000


def test_looking_at_the_lock_neither_takes_nor_makes_it(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    assert not (tmp_path / ".lock").exists()
    with FileLock(tmp_path / ".lock"):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    with (tmp_path / ".lock").open("rb") as reader:  # another who looks is nobody who holds it
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert not is_held(tmp_path)
    FileLock(tmp_path / ".lock", timeout=0).acquire()


def test_a_train_run_has_no_status(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"kind": "train"}')
    with pytest.raises(RunError, match="is a train run"):
        status_of(tmp_path)


def row(state: str, seconds: Any, epochs: int = 0, of_epochs: Any = 10) -> dict[str, Any]:
    return {"state": state, "seconds": seconds, "epochs": epochs, "of_epochs": of_epochs, "tried_again": ""}


def test_eta() -> None:
    assert eta_seconds([row("running", 10.0, 1)], 10, 2) is None  # unknown before the first trial has ended
    done = [row("complete", 100.0), row("pruned", 20.0)]
    assert eta_seconds(done, 2, 1) == 0
    assert eta_seconds(done, 10, 1) == 8 * 60
    assert eta_seconds(done, 10, 4) == 2 * 60
    assert eta_seconds(done, 3, 4) == 60  # one trial is not split over slots
    # After 50 s only the long one is a model of the running trial: 50 s are left.
    assert eta_seconds([*done, row("running", 50.0, 5)], 3, 1) == 50
    # Longer than any before it: its own speed tells.
    assert eta_seconds([*done, row("running", 120.0, 6)], 3, 1) == pytest.approx(80)
    assert eta_seconds([*done, row("running", "")], 3, 1) == 60


@pytest.fixture
def dashboard(make_search: MakeSearch, entry: Entry) -> Any:
    """optuna-dashboard over a search's study on loopback; yields the run and what fetches JSON.

    The study is given as `optuna-dashboard RUN/study.journal` gives it.
    """
    pytest.importorskip("optuna_dashboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from optuna_dashboard import wsgi

        run = make_search(make_entries(entry), planted=True, trials=10)
        application = wsgi(str(run / JOURNAL))

    class Quiet(WSGIRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, application, handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()

    def get(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=20) as answer:
            return json.load(answer)

    try:
        yield run, get
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=20)
        assert not thread.is_alive()


def as_shown(attributes: dict[str, Any]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in attributes.items()}


def test_the_dashboard_shows_the_record(dashboard: Any) -> None:
    run, get = dashboard
    summary = get("/api/studies")["study_summaries"]
    assert [study["study_name"] for study in summary] == ["tiny-search"]
    study_id = summary[0]["study_id"]
    deadline = time.monotonic() + 30
    while True:  # it fills its cache in the background
        shown = get(f"/api/studies/{study_id}")
        if len(shown["trials"]) == 8 or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(run / JOURNAL))))
    assert len(shown["trials"]) == len(study.trials) == 8
    names = {
        TrialState.COMPLETE: "Complete",
        TrialState.PRUNED: "Pruned",
        TrialState.FAIL: "Fail",
        TrialState.RUNNING: "Running",
    }
    for trial, served in zip(study.trials, shown["trials"], strict=True):
        assert served["number"] == trial.number
        assert served["state"] == names[trial.state]
        assert {each["step"]: each["value"] for each in served["intermediate_values"]} == trial.intermediate_values
        assert served.get("values") == trial.values
        external = {name: str(value) for name, value in trial.params.items()}
        assert {each["name"]: each["param_external_value"] for each in served["params"]} == external
        assert {each["key"]: each["value"] for each in served["user_attrs"]} == as_shown(trial.user_attrs)
    assert {each["key"]: each["value"] for each in shown["user_attrs"]} == {"planted": "True", "trials": "10"}
    assert len(read_record(run).entries) == 8
