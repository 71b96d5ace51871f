"""Searches too long for every commit: two hundred trials, a study on a database server, the shipped spaces."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from optuna.trial import TrialState

from cdn_tune.config import Experiment
from cdn_tune.data.planted import plant
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.study.ranking import role_of

from .conftest import PASSWORD
from .processes import Driver, command, finish, recorded, write_space

Tiny = Callable[..., Experiment]
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_hundred_trials(tiny: Tiny, tmp_path: Path) -> None:
    """Killed twice on the way; every trial on record once, the best few kept, nothing left behind."""
    run = tmp_path / "run"
    more: dict[str, Any] = {"early_stopping": {"name": "asha", "min_resource": 1}, "trials": 200, "keep": 3}
    space = write_space(tmp_path, tiny(**{"train.epochs": 3}), **more)
    for ended in (40, 120):
        driver = Driver(command(space, run), tmp_path / "log")
        try:
            driver.wait_until(partial(has_ended, run, ended), seconds=600)
        finally:
            driver.kill(everything=True)
    text = finish(command(space, run), seconds=900)
    assert "left behind" not in text
    trials = [trial for trial in read_record(run).entries if role_of(trial) == "trial"]
    assert len(trials) == 200
    states = Counter(trial.state for trial in trials)
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert len({str(sorted(trial.params.items())) for trial in trials}) == 200
    assert len(list((run / "best").glob("trial-*/checkpoint.pt"))) == 3
    assert not list((run / "trials").glob("*/checkpoints/*.pt"))


def has_ended(run: Path, count: int) -> bool:
    return sum(trial.state.is_finished() for trial in recorded(run)) >= count


@pytest.mark.slow
@pytest.mark.timeout(2500)
@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
def test_a_study_on_a_server(kind: str, tiny: Tiny, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The driver is killed in mid-search; the same command goes on from the server, and no secret is written down."""
    url = request.getfixturevalue(f"{kind}_url")
    run = tmp_path / "run"
    space = write_space(tmp_path, tiny(**{"train.epochs": 6}), trials=4, early_stopping={"name": "none"})
    arguments = command(space, run, "--storage", url)

    def has_begun() -> bool:
        return any(run.glob("trials/*/metrics.jsonl"))

    driver = Driver(arguments, tmp_path / "log")
    try:
        driver.wait_until(has_begun)
    finally:
        driver.kill()
    finish(arguments)
    trials = read_record(run, url).entries
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert not (run / "study.db").exists()
    manifest = (run / "manifest.json").read_text()
    assert f"{kind}://cdn:***@" in manifest
    assert quote(PASSWORD, safe="") not in manifest


def first_sentences(source: Path, folder: Path) -> Path:
    """Copies TACoS annotations with three sentences a video; returns where to."""
    folder.mkdir()
    for path in source.glob("*.json"):
        videos = json.loads(path.read_text())
        for video in videos.values():
            video["timestamps"], video["sentences"] = video["timestamps"][:3], video["sentences"][:3]
        (folder / path.name).write_text(json.dumps(videos))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(2500)
@pytest.mark.parametrize(("space", "dataset"), [("charades-core", "charades_sta"), ("tacos-core", "tacos")])
def test_core_spaces_run_two_trials(tmp_path: Path, space: str, dataset: str) -> None:
    """Their plans hold, and two real trials, cut to a few steps, run on planted features of the real size."""
    shared = ROOT.parent / "shared" / "data" / dataset
    if not shared.exists():
        pytest.skip("the real annotations are not here")
    if dataset == "tacos":  # a query takes seconds here, and a video has more than a hundred
        shared = first_sentences(shared, tmp_path / "annotations")
    data = tmp_path / "data"
    plant(data, annotations=dataset, source=shared, videos=12, feature_size=4096, word_size=300, frame_rate=1.0)
    vectors = next(data.glob("glove*.txt")).name
    cut = [f"data.root={data}", f"data.word_vectors={vectors}", "train.epochs=1", "train.eval_queries=4"]
    cut += ["train.micro_batch=1", "model.clips=16"] if dataset == "tacos" else []
    changes = ("resources.gpus_per_worker=0", "resources.cpus_per_worker=2", "keep=1", "early_stopping.min_resource=1")
    settings = [word for change in changes for word in ("--set", change)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    base = [sys.executable, "-m", "cdn_tune", "search", space, *cut, *settings]
    planned = subprocess.run(
        [*base, "--plan"], capture_output=True, text=True, timeout=900, check=False, env=environment
    )
    assert planned.returncode == 0, planned.stdout + planned.stderr
    run = tmp_path / "run"
    searched = subprocess.run(
        [*base, "--trials", "2", "--run", str(run)],
        capture_output=True, text=True, timeout=1500, check=False, env=environment,
    )  # fmt: skip
    assert searched.returncode == 0, searched.stdout + searched.stderr
    trials = [trial for trial in read_record(run).entries if role_of(trial) == "trial"]
    assert len(trials) == 2
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
