"""`cdn-tune train`: what it prints, how it goes on, what it says when the disk is full; the final table."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

from cdn_tune.cli import app
from cdn_tune.cli.show import progress
from cdn_tune.cli.show.tables import trained_table
from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump
from cdn_tune.training.memory.estimate import checkpoint_bytes, occupied_bytes
from cdn_tune.training.reports import StepReport, ignore
from cdn_tune.training.runs.files import write_errors
from cdn_tune.training.runs.records import METRICS, Records, read_metrics
from cdn_tune.training.runs.run_folder import read_manifest
from cdn_tune.training.state import TrialState
from cdn_tune.training.train_trial import train_in
from tests.training.test_records import epoch as epoch_report

Tiny = Callable[..., Experiment]


def shown(*arguments: object) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(trained_table(*arguments))  # type: ignore[arg-type]
    return captured.get()


def test_the_best_epoch_is_shown_with_its_cost(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"train.epochs": 2})
    train_in(experiment, tmp_path, ignore)
    epochs = read_metrics(tmp_path)
    epochs[-1] |= {"best_epoch": 1, "peak_bytes": 3 << 20}
    for epoch, seconds in zip(epochs, (60.0, 65.0), strict=True):
        epoch |= {"train_seconds": seconds, "val_seconds": 1.0}
    epochs[0]["val"] = dict.fromkeys(experiment.eval.metrics, 0.1234)
    text = shown(experiment, epochs, tmp_path, True)
    assert "charades_sta (planted data), val split, epoch 1 of 2, in %" in text
    head, _, row = (line.split() for line in text.splitlines()[-4:-1])
    assert head[: len(experiment.eval.metrics)] == list(experiment.eval.metrics)
    assert row.count("12.34") == len(experiment.eval.metrics)
    assert "2 min 7 s" in text
    assert "3 MiB" in text
    del epochs[-1]["peak_bytes"]  # of a run that began before there was any
    assert "MiB" not in shown(experiment, epochs, tmp_path, False)


def test_disk_use_is_what_the_plan_says(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"train.epochs": 3})
    train_in(experiment, tmp_path, ignore)
    files = [path.stat().st_size for path in (tmp_path / "checkpoints").iterdir()]
    assert len(files) == 3
    assert occupied_bytes(tmp_path) == sum(files)
    tensors = checkpoint_bytes(experiment)
    archives = 4 * (1 << 17)  # names, history and alignment of so small a model's files
    assert occupied_bytes(tmp_path) < tensors + archives


@pytest.fixture
def train(tiny: Tiny, tmp_path: Path) -> Callable[..., Result]:
    """Runs `cdn-tune train` of a tiny experiment of one epoch in ``run``, with these arguments besides."""
    file = tmp_path / "tiny.yaml"
    file.write_text(dump(tiny(**{"train.epochs": 1}).plain()))

    def invoke(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, ["train", str(file), "--run", str(tmp_path / "run"), *arguments])
        assert result.exit_code == code, result.output
        assert "internal error" not in result.output
        return result

    return invoke


def test_a_finished_run_becomes_longer_and_says_from_where(train: Callable[..., Result]) -> None:
    assert "epoch   1/1 " in train("--threads", "1").output
    assert "nothing to do (a larger train.epochs makes it longer)" in train().output
    longer = train("train.epochs=2").output
    assert re.search(r"going on after epoch 1/2  best R1@0\.5 \d\.\d{4} \(epoch 1\)", longer)
    assert re.findall(r"^epoch +(\d)/2 ", longer, re.MULTILINE) == ["2"]  # what was done is not shown again
    assert "nothing to do" in train("train.epochs=2").output
    assert "a run can become longer only" in train(code=2).output


def test_threads_are_recorded_and_stay(train: Callable[..., Result], tmp_path: Path) -> None:
    assert "2 CPU threads" in train("--threads", "2").output
    assert read_manifest(tmp_path / "run")["threads"] == 2
    assert "2 CPU threads" in train("train.epochs=2").output  # the default is one


def test_damaged_records_are_made_anew(train: Callable[..., Result], tmp_path: Path) -> None:
    train()
    path = tmp_path / "run" / METRICS
    before = path.read_bytes()
    for damage in (b"\xff\xfe", b"[]\n", b"null\n", b'{"epoch": 1}\n', before.replace(b'"epoch": 1', b'"epoch": "1"')):
        path.write_bytes(damage)
        train()
        assert path.read_bytes() == before
    path.unlink()
    path.mkdir()
    assert "metrics.jsonl: cannot be written" in train(code=2).output


@pytest.mark.parametrize("what", ["checkpoint", "curves", "metrics", "folder"])
def test_a_full_disk_or_a_deleted_folder_is_one_line_and_the_same_command_goes_on(
    train: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    full, run = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), tmp_path / "run"
    begun: list[int] = []

    def fail(*_: object, **__: object) -> None:
        begun.append(1)
        if what != "folder":
            raise full
        shutil.rmtree(run)

    with monkeypatch.context() as patch:
        if what == "checkpoint":
            patch.setattr(torch, "save", fail)
        elif what == "curves":
            patch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", fail)
        elif what == "metrics":
            patch.setattr(Records, "write", lambda *_: _within_write_errors(run / METRICS, fail))
        else:
            patch.setattr(TrialState, "prepare_save", lambda *_: fail() or original(*_))
        output = train(code=2).output
    assert begun
    errors = [line for line in output.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert ("was deleted while it was trained" if what == "folder" else "No space left on device") in errors[0]
    assert "Traceback" not in output
    assert not list(tmp_path.rglob(".*.tmp"))
    assert "best val R1@0.5" in train().output


original = TrialState.prepare_save


def _within_write_errors(path: Path, fail: Callable[[], None]) -> None:
    with write_errors(path):
        fail()


@pytest.mark.parametrize(
    ("epochs", "step", "told"),
    [
        (2, 1, ["going on after epoch 2/9  best R1@0.5 0.2000 (epoch 2)"]),
        (2, 5, ["going on after epoch 2/9, step 4 of epoch 3  best R1@0.5 0.2000 (epoch 2)"]),
        (0, 5, ["going on after step 4 of epoch 1"]),
        (0, 1, []),
    ],
)
def test_where_a_training_goes_on(epochs: int, step: int, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(progress, "print_note", lines.append)
    shown = progress.TrainProgress("R1@0.5", 9)
    reports = [epoch_report(number) for number in range(1, epochs + 2)]
    for report in reports[:-1]:
        shown.on_epoch(report)
    assert lines == []
    for number in (step, step + 1):
        shown.on_step(StepReport(epochs + 1, number, 10, 0.5))
    assert lines == told
    for report in (*reports, reports[-1]):  # workers that have replaced lost ones report all of them again
        shown.on_epoch(report)
    assert len(lines) == len(told) + 1
    assert lines[-1].startswith(f"epoch   {epochs + 1}/9  loss ")
