"""`cdn_tune.train`: the command line's training as a function."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cdn_tune
from cdn_tune.cli import app
from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump
from cdn_tune.errors import CdnTuneError, ConfigError, RunError
from cdn_tune.training.runs.records import read_metrics

Tiny = Callable[..., Experiment]
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def values(run: Path) -> list[Any]:
    return [(epoch["loss"], epoch["val"], epoch["learning_rate"]) for epoch in read_metrics(run)]


def test_as_on_the_command_line(tiny: Tiny, tmp_path: Path, trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """From an object, a file and a mapping: the same numbers; nothing is printed, and no signal is handled."""
    plain = tiny(**{"train.epochs": 2}).plain()
    (tmp_path / "tiny.yaml").write_text(dump(plain))
    capfd.readouterr()
    handlers = [signal.getsignal(each) for each in HANDLED]
    seen: list[tuple[int, bool]] = []

    def on_step(step: cdn_tune.StepReport) -> None:
        seen.append((step.epoch, [signal.getsignal(each) for each in HANDLED] == handlers))

    reports: list[cdn_tune.EpochReport] = []
    run = cdn_tune.train(plain, run=tmp_path / "mapping", on_epoch=reports.append, on_step=on_step)
    assert capfd.readouterr() == ("", "")
    assert [report.epoch for report in reports] == [1, 2]
    assert {epoch for epoch, _ in seen} == {1, 2}
    assert all(same for _, same in seen)
    assert run.path == tmp_path / "mapping"
    assert (run.kind, run.experiment) == ("train", tiny(**{"train.epochs": 2}))
    command = ["train", str(tmp_path / "tiny.yaml"), "--run", str(tmp_path / "command")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert values(run.path) == values(trained) == values(tmp_path / "command")
    # The same call, and the same command, find it finished.
    assert cdn_tune.train(tmp_path / "tiny.yaml", run=tmp_path / "command").best == cdn_tune.open_run(command[-1]).best
    assert "nothing to do" in CliRunner().invoke(app, [*command[:-1], str(run.path)]).output


def test_a_callback_ends_it_in_order_and_the_same_call_goes_on(tiny: Tiny, tmp_path: Path, trained: Path) -> None:
    experiment, folder = tiny(**{"train.epochs": 2}), tmp_path / "run"
    run = cdn_tune.train(experiment, run=folder, on_step=lambda step: step.step == 2)
    assert len(run.epochs()) == 0
    epochs: list[int] = []
    run = cdn_tune.train(experiment, run=folder, on_epoch=lambda report: epochs.append(report.epoch))
    assert epochs == [1, 2]
    assert values(folder) == values(trained)


def test_ctrl_c_ends_it_in_order(tiny: Tiny, tmp_path: Path, trained: Path) -> None:
    folder = tmp_path / "run"

    def interrupt(_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="the same call goes on from the last checkpoint"):
        cdn_tune.train(tiny(**{"train.epochs": 2}), run=folder, on_step=interrupt)
    assert (folder / "checkpoints/last.pt").exists()
    cdn_tune.train(tiny(**{"train.epochs": 2}), run=folder)
    assert values(folder) == values(trained)


def test_progress_is_printed_if_asked(tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cdn_tune.train(tiny(**{"train.epochs": 1}), run=tmp_path / "run", progress=True)
    out, err = capfd.readouterr()
    assert (out, err.split()[:2]) == ("", ["epoch", "1/1"])


def test_a_faulty_callback_is_raised_and_the_run_can_go_on(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        cdn_tune.train(tiny(**{"train.epochs": 1}), run=tmp_path / "run", on_step=lambda _: 1 / 0)
    assert len(cdn_tune.train(tiny(**{"train.epochs": 1}), run=tmp_path / "run").epochs()) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"workers": 0}, "workers=0 is wrong: give a whole number from 1"),
        ({"workers": True}, "workers=True is wrong: give a whole number from 1"),
        ({"workers": 99}, "workers=99: more workers than train.batch_size=8"),
        ({"threads": "2"}, "threads='2' is wrong: give a whole number from 1"),
        ({"on_epoch": 3}, "on_epoch=3 is wrong: give a function of one argument"),
        ({"run": 7}, "run=7 is wrong: give a path"),
        ({"run": ""}, "run='' is wrong: give a path"),
        ({"run": "a/" + "x" * 300}, "File name too long"),
        ({"run": "~no-such-user/x"}, "run='~no-such-user/x' begins with the name of no user"),
        ({"run": "a\0b"}, "run='a\\x00b' is wrong: give a path"),
        ({"address": 5}, "address=5 is wrong: give a text"),
        ({"progress": "no"}, "progress='no' is wrong: give True or False"),
        ({"address": "auto"}, "address=ADDR: one worker trains on this machine; add workers=N, or drop address"),
        ({"start": "nowhere.pt"}, "nowhere.pt: no such checkpoint"),
        ({"overrides": ["optim.lr=1"]}, "overrides: ['optim.lr=1'] is wrong: give dotted keys with values"),
        ({"overrides": {"optim.lrr": 1}}, "optim.lrr: unknown key; did you mean optim.lr?"),
        ({"overrides": {"optim.lr": "fast"}}, "optim.lr: 'fast' is wrong: input should be a valid number"),
        ({"overrides": {"data.root": Path("/nowhere")}}, "/nowhere"),
        ({"experiment": 3}, "experiment: 3 is wrong: give the path of a YAML file, nested values"),
        ({"experiment": "nowhere.yaml"}, "nowhere.yaml: no such file; shipped are experiments/"),
        ({"experiment": "x" * 300}, "x …: cannot be read (File name too long); name a file"),
        ({"experiment": {"name": "x"}}, "experiment: data: missing; add it"),
    ],
)
def test_wrong_arguments_are_one_line(tiny: Tiny, tmp_path: Path, arguments: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"experiment": tiny(), "run": tmp_path / "run", **arguments}
    with pytest.raises(CdnTuneError) as caught:
        cdn_tune.train(**given)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/manifest.json").exists()


def test_another_run_in_the_folder_is_refused(tiny: Tiny, trained: Path) -> None:
    with pytest.raises(RunError, match=r"optim\.lr is 0\.003 there, 0\.5 here"):
        cdn_tune.train(tiny(**{"train.epochs": 2}), {"optim.lr": 0.5}, run=trained)
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        cdn_tune.train(tiny(), {"optim.lr": -1}, run=trained)
