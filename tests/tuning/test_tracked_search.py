"""A real search logged to a real MLflow server that goes away; its numbers in a browser, in three programs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.config import Experiment
from cdn_tune.tuning.layout import trial_folder
from cdn_tune.tuning.results.record import Record, read_record
from cdn_tune.tuning.study.ranking import ranking, trained, value_of
from tests.mlflow_server import Mlflow, mlflow_server

from .clusters import wait_for
from .processes import Driver, command, finish, recorded, write_space

__all__ = ["mlflow_server"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.filterwarnings("default")]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SECONDS = 180.0
Tiny = Callable[..., Experiment]


def assert_logged(mlflow: Mlflow, record: Record) -> None:
    """Asserts that MLflow has the search's trials, each once, with the study's numbers."""
    runs, trials = mlflow.runs(), trained(record.entries)
    parent = runs.pop("tiny")
    assert set(runs) == {f"trial {trial.number}" for trial in trials}
    for trial in trials:
        run = runs[f"trial {trial.number}"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["cdn_tune.state"] == trial.state.name.lower()
        assert {name: run.data.tags[name] for name in ("dataset", "data", "family", "seed")} == {
            "dataset": "charades_sta", "data": "planted", "family": "cdn", "seed": str(record.base.seed),
        }  # fmt: skip
        assert run.data.params == {key: str(value) for key, value in trial.params.items()}
        assert run.data.metrics["best/R1_at_0.5"] == value_of(trial)
        history = mlflow.client().get_metric_history(run.info.run_id, "best/R1_at_0.5")
        assert {each.step: each.value for each in history} == trial.intermediate_values
        assert len(history) == len(trial.intermediate_values), "an epoch was logged twice"
    best = ranking(record.entries)[0]
    assert parent.data.tags["best_trial"] == str(best.number)
    assert parent.data.metrics["best/R1_at_0.5"] == value_of(best)
    assert parent.info.status == "FINISHED"


def files_of(mlflow: Mlflow, name: str = "tiny", folder: str = "") -> list[str]:
    run_id = mlflow.runs()[name].info.run_id
    return sorted(file.path for file in mlflow.client().list_artifacts(run_id, folder or None))


def test_a_killed_search_goes_on_in_the_same_runs(mlflow_server: Mlflow, tiny: Tiny, tmp_path: Path) -> None:
    """MLflow is away at the start, goes away again, and the driver is killed: in the end everything is there, once."""
    settings = {"early_stopping": {"name": "none"}, "tracking": {"mlflow": mlflow_server.uri}}
    space = write_space(tmp_path, tiny(**{"train.epochs": 8}), trials=4, **settings)
    run = tmp_path / "run"
    proxy, start = mlflow_server.proxy, command(space, run)
    proxy.fail, proxy.answer = 10**6, (500, "text/html", b"<html>" * 10_000)
    driver = Driver(start, tmp_path / "log")
    assert driver.wait_until(lambda: any(trial.intermediate_values for trial in recorded(run)))
    proxy.heal()
    assert driver.wait_until(lambda: any(name.startswith("trial") for name in mlflow_server.runs()))
    driver.kill()
    told = (tmp_path / "log").read_text()
    assert told.count("what is missing is logged later") == 1, told
    mlflow_server.server.stop()
    printed = finish([*start, "--resume"], 500)
    assert "not everything is logged there; the same command logs what is missing" in printed
    assert printed.count("does not answer") == 1
    mlflow_server.server.start()
    printed = finish([*start, "--resume"], 500)
    assert f"MLflow: {mlflow_server.uri}/#/experiments/" in printed
    record = read_record(run)
    assert_logged(mlflow_server, record)
    assert files_of(mlflow_server) == [
        "best", "experiment.yaml", "leaderboard.csv", "leaderboard.json", "report", "search_space.yaml"
    ]  # fmt: skip
    assert files_of(mlflow_server, folder="report") == ["report/index.html"]
    assert files_of(mlflow_server, folder="best") == ["best/experiment.yaml"]
    for file in run.rglob("*"):
        if file.is_file() and file.suffix in (".json", ".yaml", ".journal", ".csv"):
            assert proxy.endpoint not in file.read_text() or file.name == "manifest.json"


def test_a_training_is_one_run(mlflow_server: Mlflow, tiny: Tiny, tmp_path: Path) -> None:
    from cdn_tune.config.yaml import dump

    (tmp_path / "experiment.yaml").write_text(dump(tiny().plain()))
    start = [
        sys.executable,
        "-m",
        "cdn_tune",
        "train",
        str(tmp_path / "experiment.yaml"),
        "--run",
        str(tmp_path / "run"),
    ]
    start += ["--run", str(tmp_path / "run"), f"tracking.mlflow={mlflow_server.uri}", "tracking.checkpoints=true"]
    for _ in range(2):
        assert f"MLflow: {mlflow_server.uri}/#/" in finish(start)
    (run,) = mlflow_server.runs().values()
    assert run.info.status == "FINISHED"
    history = mlflow_server.client().get_metric_history(run.info.run_id, "val/R1_at_0.5")
    assert [each.step for each in history] == [1, 2, 3]
    assert files_of(mlflow_server, "tiny", "checkpoints") == ["checkpoints/best.pt"]
    assert run.data.params["optim.lr"] == "0.003"


@pytest.fixture
def page() -> Iterator[Any]:
    """A page in headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(viewport={"width": 1600, "height": 1000})
        context.set_default_timeout(SECONDS * 1000)
        yield context.new_page()
        browser.close()


@contextmanager
def served(arguments: list[str], port: int, log: Path) -> Iterator[str]:
    """Runs a web server until it is left; yields its URL once it answers."""
    with log.open("w") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=file, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(url, timeout=5).close()
            except OSError:
                return False
            return True

        wait_for(answers, SECONDS)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def texts(page: Any) -> str:
    """What the page shows, in one line."""
    found: str = page.evaluate("document.body.innerText")
    return " ".join(found.split())


def test_three_programs_show_the_studys_numbers(mlflow_server: Mlflow, tiny: Tiny, page: Any, tmp_path: Path) -> None:
    """MLflow, TensorBoard and optuna-dashboard, as a person opens them on a finished search."""
    run = tmp_path / "run"
    space = write_space(tmp_path, tiny(), trials=3, tracking={"mlflow": mlflow_server.uri})
    finish(command(space, run))
    record = read_record(run)
    assert_logged(mlflow_server, record)
    trials = trained(record.entries)
    best = ranking(record.entries)[0]

    parent = mlflow_server.runs()["tiny"].info
    for trial in (best, trials[-1]):
        logged = mlflow_server.runs()[f"trial {trial.number}"].info
        page.goto(f"{mlflow_server.uri}/#/experiments/{parent.experiment_id}/runs/{logged.run_id}")
        page.get_by_text("best/R1_at_0.5").first.wait_for()
        shown = texts(page)
        assert f"trial {trial.number}" in shown
        assert any(_is_close(number, value_of(trial)) for number in _numbers(shown)), shown
        assert trial.params["model.proposals"] in shown
    page.goto(f"{mlflow_server.uri}/#/experiments/{parent.experiment_id}/runs")
    wait_for(lambda: f"{len(trials) + 1} matching runs" in texts(page), SECONDS)

    port = free_port()
    dashboard = [sys.executable, "-c", "from optuna_dashboard._cli import main; main()", str(run / "study.journal")]
    with served([*dashboard, "--host", "127.0.0.1", "--port", str(port)], port, tmp_path / "dashboard.log") as url:
        for trial in trials:
            page.goto(f"{url}/dashboard/studies/0/trials?numbers={trial.number}")
            wait_for(lambda of=trial: f"Trial {of.number} (trial_id" in texts(page), SECONDS)
            shown = texts(page)
            assert f"Value {_in_full(value_of(trial))} " in shown
            assert f"optim.lr {_in_full(trial.params['optim.lr'])} " in shown
            curve = " ".join(f"{step} {_in_full(value)}" for step, value in trial.intermediate_values.items())
            assert f"Intermediate Values {curve} " in shown

    port = free_port()
    board = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run / "trials"), "--host", "127.0.0.1"]
    with served([*board, "--port", str(port), "--load_fast", "false"], port, tmp_path / "board.log") as url:
        page.goto(f"{url}/#hparams")
        page.get_by_text("hparam/R1@0.5").filter(visible=True).first.wait_for()
        for trial in trials:  # in five digits
            page.get_by_text(f"{value_of(trial):#.5g}", exact=True).filter(visible=True).first.wait_for()
        page.goto(f"{url}/#timeseries")
        for trial in trials:
            name = f"{trial_folder(run, trial.number).name}/tensorboard"
            page.get_by_text(name).filter(visible=True).first.wait_for()


def _numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])", text)]


def _in_full(value: float | None) -> str:
    """Returns a number as JavaScript writes it."""
    return str(value).removesuffix(".0")


def _is_close(shown: float, value: float | None) -> bool:
    """Whether a number that is shown is a value, rounded to three digits or more."""
    return value is not None and shown == pytest.approx(value, rel=5e-3)
