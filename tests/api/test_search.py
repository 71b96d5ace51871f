"""`cdn_tune.search`: the command line's search as a function, on real Ray."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cdn_tune
from cdn_tune.config import Experiment, SearchSpace, load_space
from cdn_tune.config.yaml import dump
from cdn_tune.errors import CdnTuneError

Tiny = Callable[..., Experiment]
SPACE: dict[str, Any] = {
    "name": "from-python",
    "parameters": {"optim.lr": {"type": "float", "low": 1e-3, "high": 1e-2, "log": True}},
    "trials": 2,
    "early_stopping": {"name": "none"},
}
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.usefixtures("ray_session")
def test_a_ray_that_is_there_is_used_and_stays(tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A mapping over an object; callbacks in this thread; nothing printed; the same call goes on."""
    import ray

    before, handlers = ray.get_runtime_context().get_job_id(), [signal.getsignal(each) for each in HANDLED]
    rows: list[dict[str, Any]] = []
    slots: set[int] = set()
    base, folder = tiny(**{"train.epochs": 1}), tmp_path / "run"
    capfd.readouterr()

    def on_change(state: cdn_tune.SearchState) -> None:
        slots.add(state.slots)
        assert [signal.getsignal(each) for each in HANDLED] == handlers

    run = cdn_tune.search(SPACE, experiment=base, run=folder, on_trial=rows.append, on_change=on_change)
    assert capfd.readouterr() == ("", "")
    assert ray.get_runtime_context().get_job_id() == before
    assert sorted(row["trial"] for row in rows) == [0, 1]
    assert {row["state"] for row in rows} == {"complete"}
    assert slots
    assert (run.kind, run.path, len(run.leaderboard())) == ("search", folder, 2)
    assert (run.space.experiment, run.experiment) == ("tiny", base)
    assert run.best.checkpoint.is_file()
    assert [trial.state.name for trial in run.study.trials] == ["COMPLETE"] * 2

    more = list[dict[str, Any]]()
    space, _ = load_space(SPACE, experiment=base)
    again = cdn_tune.search(space, experiment=base, run=folder, add_trials=1, on_trial=more.append)
    assert [row["trial"] for row in more] == [2]
    assert len(again.leaderboard()) == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"trials": 0}, "trials=0 is wrong: give a whole number from 1"),
        ({"add_trials": 1.5}, "add_trials=1.5 is wrong: give a whole number from 1"),
        ({"on_trial": "x"}, "on_trial='x' is wrong: give a function of one argument"),
        ({"space": 3}, "search space: 3 is wrong: give the path of a YAML file, nested values"),
        ({"space": "nowhere"}, "nowhere: no such file; shipped are search_spaces/"),
        ({"space": {**SPACE, "trails": 3}}, "search space: trails: unknown key; did you mean trials?"),
        ({"experiment": None}, "search space: experiment: missing; add it"),
        ({"experiment": 3}, "experiment: 3 is wrong"),
        ({"overrides": {"optim.lr": 0.1}}, "override optim.lr=0.1: search space searches over this key"),
        ({"settings": {"sampler.name": "tpf"}}, "sampler.name: 'tpf' is wrong: no such sampler; did you mean tpe?"),
        ({"settings": {"smapler.seed": 3}}, "settings smapler.seed=3: smapler.seed: unknown key; did you mean sampler"),
        ({"settings": ["a"]}, "settings: ['a'] is wrong: give dotted keys with values"),
        ({"warm_start": "runs/a"}, "warm_start='runs/a' is wrong: give a list of run folders"),
        ({"warm_start": 5}, "warm_start=5 is wrong: give a list of run folders"),
        ({"warm_start": [5]}, "warm_start=[5] is wrong: give a list of run folders"),
        ({"warm_start": ["nowhere"]}, "nowhere: no such run folder"),
        ({"storage": 5}, "storage=5 is wrong: give a text"),
        ({"storage": "nonsense://x"}, "storage nonsense://x: no such kind; write sqlite:///PATH"),
        ({"resume": True}, "holds no search; check run, or leave resume out"),
        ({"storage": "nonsense"}, "nonsense"),
    ],
)
def test_wrong_arguments_are_one_line(tiny: Tiny, tmp_path: Path, arguments: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"space": SPACE, "experiment": tiny(), "run": tmp_path / "run", **arguments}
    with pytest.raises(CdnTuneError) as caught:
        cdn_tune.search(**given)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_space_is_the_same_in_each_form(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(dump(tiny().plain()))
    (tmp_path / "space.yaml").write_text(dump({**SPACE, "experiment": "base.yaml"}))
    read, base = load_space(tmp_path / "space.yaml")
    assert base == tiny()
    for form in (SPACE, read, SearchSpace.model_validate({**SPACE, "experiment": "x"}), tmp_path / "space.yaml"):
        for experiment in (tiny(), tiny().plain(), tmp_path / "base.yaml"):
            space, found = load_space(form, {"optim.warmup_steps": 2}, {"trials": 7}, experiment)
            assert space == read.model_copy(update={"experiment": "tiny", "trials": 7})
            assert found == tiny(**{"optim.warmup_steps": 2})


SCRIPT = """
import json, os, signal, sys
import cdn_tune

try:
    cdn_tune.search(json.loads(sys.argv[1]), experiment=sys.argv[2], run=sys.argv[3])
except KeyboardInterrupt as interrupt:
    print("interrupted:", interrupt, flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.slow
def test_ctrl_c_stops_a_search_in_order(tiny: Tiny, tmp_path: Path) -> None:
    """In a script of its own, with a Ray of its own: trials save, and the same call goes on to the same end."""
    import json

    (tmp_path / "base.yaml").write_text(dump(tiny(**{"train.epochs": 30}).plain()))
    space = {**SPACE, "trials": 4, "resources": {"cpus_per_worker": 1}}
    command = [sys.executable, "-c", SCRIPT, json.dumps(space), str(tmp_path / "base.yaml"), str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 200
        while not list((tmp_path / "run").glob("trials/*/metrics.jsonl")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert "interrupted: the same call goes on" in out, out + err
    assert "stopping with a checkpoint" in err
    assert "Traceback" not in err
    assert "SIGTERM received" not in err  # its handler is the program's again, not Ray's
    assert process.returncode == -signal.SIGTERM
    run = cdn_tune.open_run(tmp_path / "run")
    assert "running" in set(run.leaderboard()["state"])
    assert list((tmp_path / "run").glob("trials/*/checkpoints/last.pt"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert set(run.leaderboard()["state"]) == {"complete"}
