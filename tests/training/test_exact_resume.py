"""A trial that is stopped, killed or damaged anywhere ends as if nothing had happened."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump
from cdn_tune.errors import CheckpointError, RunError
from cdn_tune.training.reports import Decisions, EpochReport, StepReport, Stop, ignore
from cdn_tune.training.runs.checkpoint import BEST, LAST, PREVIOUS, read_checkpoint
from cdn_tune.training.runs.records import EVENTS, read_metrics
from cdn_tune.training.train_trial import open_data, train_in

Tiny = Callable[..., Experiment]
EVERYTHING: dict[str, Any] = {"optim.schedule": "cosine", "optim.warmup_steps": 3, "train.ema": 0.9}
OF_VIDEOS: dict[str, Any] = {"train.batch_of": "videos", "train.batch_size": 4, "model.contrastive": True}
AUGMENTED: dict[str, Any] = {f"train.augment.{name}": 0.5 for name in ("crop", "shift", "negative")}
TIMES = ("train_seconds", "val_seconds", "samples_per_second", "peak_bytes")


def outcome(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What must not depend on interruptions: the last state, and the metrics without times."""
    state = read_checkpoint(folder / LAST)
    history = [{key: value for key, value in entry.items() if key not in TIMES} for entry in read_metrics(folder)]
    return {key: state[key] for key in ("model", "optimiser", "schedule", "ema", "generators")}, history


def same(first: Any, second: Any) -> bool:
    """Whether nested values are equal, tensors bit by bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def assert_same(folder: Path, whole: Path) -> None:
    (state, history), (expected_state, expected_history) = outcome(folder), outcome(whole)
    assert history == expected_history
    for key in state:
        assert same(state[key], expected_state[key]), key
    best, expected_best = read_checkpoint(folder / BEST), read_checkpoint(whole / BEST)
    assert same(best["model"], expected_best["model"])
    assert (best["epoch"], best["val"]) == (expected_best["epoch"], expected_best["val"])


class StopAt:
    """Asks to stop after a step, counted over all epochs."""

    def __init__(self, step: int) -> None:
        self.left = step

    def on_step(self, _: StepReport) -> None:
        self.left -= 1

    def __call__(self) -> bool:
        return self.left <= 0


@pytest.mark.parametrize(
    "changes", [{}, EVERYTHING, {"train.precision": "bf16", "train.micro_batch": 3}, AUGMENTED, OF_VIDEOS]
)
def test_stopped_between_steps(tiny: Tiny, tmp_path: Path, changes: dict[str, Any]) -> None:
    experiment = tiny(**changes)
    train_in(experiment, tmp_path / "whole", ignore)
    for step in (1, 3, 7):
        folder, stop = tmp_path / f"stopped after {step}", StopAt(step)
        with pytest.raises(KeyboardInterrupt):
            train_in(experiment, folder, ignore, stop.on_step, stop=stop)
        told: list[int] = []
        train_in(experiment, folder, lambda report, told=told: told.append(report.epoch))
        assert told == [1, 2, 3]
        assert_same(folder, tmp_path / "whole")


def test_discarded_between_steps(tiny: Tiny, tmp_path: Path) -> None:
    """The last checkpoint stays as it is; none is written that nobody needs."""
    experiment = tiny(**{"train.checkpoint": "epoch"})
    steps = StopAt(10**9)
    train_in(experiment, tmp_path / "whole", ignore, steps.on_step)
    per_epoch = (10**9 - steps.left) // experiment.train.epochs
    for within, found in ((1, None), (per_epoch + 1, 1)):
        left, folder = StopAt(within), tmp_path / f"{within}"
        with pytest.raises(KeyboardInterrupt):
            train_in(
                experiment, folder, ignore, left.on_step, stop=lambda left=left: Stop.DISCARD if left() else Stop.NO
            )
        assert left.left == 0
        if found is None:
            assert not (folder / LAST).exists()
        else:
            content = read_checkpoint(folder / LAST)
            assert (content["within"], len(content["history"])) == (None, found)


def test_a_checkpoint_within_an_epoch_after_so_many_minutes(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"train.checkpoint": 1e-9, "train.epochs": 1})
    found: list[int] = []

    def look(step: StepReport) -> None:
        if step.step > 2:
            while not (tmp_path / LAST).exists():  # the writer's turn
                time.sleep(0.01)
            content = read_checkpoint(tmp_path / LAST)
            found.append(content["within"][0])

    train_in(experiment, tmp_path, ignore, look)
    assert found
    assert all(step > 0 for step in found)
    assert read_checkpoint(tmp_path / LAST)["within"] is None


@pytest.mark.parametrize("damage", ["cut short", "changed bytes", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tiny: Tiny, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = tiny(**{"train.checkpoint": "epoch"})
    train_in(experiment, tmp_path / "whole", ignore)
    folder = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        train_in(experiment, folder, ignore, stop=StopAfterEpochs(folder, 2))
    content = bytearray((folder / LAST).read_bytes())
    if damage == "cut short":
        (folder / LAST).write_bytes(content[: len(content) // 2])
    elif damage == "changed bytes":  # more than stand between two entries
        middle = slice(len(content) // 2, len(content) // 2 + 128)
        content[middle] = bytes(byte ^ 1 for byte in content[middle])
        (folder / LAST).write_bytes(content)
    else:
        (folder / LAST).unlink()
    train_in(experiment, folder, ignore)
    assert_same(folder, tmp_path / "whole")
    if damage != "gone":
        assert "going on from the checkpoint before it" in caplog.text


class StopAfterEpochs:
    """Asks to stop once so many epochs are recorded."""

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder, self.epochs = folder, epochs

    def __call__(self) -> bool:
        return len(read_metrics(self.folder)) >= self.epochs


def test_when_all_is_damaged_it_is_told(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"train.checkpoint": "epoch"})
    train_in(experiment, tmp_path, ignore)
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"previous\.pt: damaged"):
        train_in(experiment, tmp_path, ignore)


def kill_and_go_on(experiment: Experiment, folder: Path, kills: int, generator: random.Random) -> int:
    """Starts `cdn-tune train` again and again, each time killed after a random while, then lets it end.

    Returns:
        How many of the kills met a process that was still at it.
    """
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(dump(experiment.plain()))
    run = folder / "run"
    command = [sys.executable, "-m", "cdn_tune", "train", str(folder / "experiment.yaml"), "--run", str(run)]
    killed = 0
    for _ in range(kills):
        before = (run / LAST).stat().st_mtime_ns if (run / LAST).exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if (run / LAST).exists() and (run / LAST).stat().st_mtime_ns != before:
                    break
                time.sleep(0.005)
            time.sleep(generator.uniform(0, 0.3))
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return killed


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2])
def test_killed_at_random_moments(tiny: Tiny, tmp_path: Path, kills: int) -> None:
    experiment = tiny(**{"train.epochs": 12, "train.checkpoint": 1e-9, **EVERYTHING})
    train_in(experiment, tmp_path / "whole", ignore)
    assert kill_and_go_on(experiment, tmp_path / "killed", kills, random.Random(0)) >= 1
    assert_same(tmp_path / "killed" / "run", tmp_path / "whole")


@pytest.mark.parametrize("step", [2, 5])
def test_left_at_once_by_a_second_interrupt(tiny: Tiny, tmp_path: Path, step: int) -> None:
    """No checkpoint is written on the way out; what is on disk stays whole, and the run goes on exactly."""
    experiment = tiny(**{"train.epochs": 3, "train.checkpoint": 1e-9, **EVERYTHING})
    train_in(experiment, tmp_path / "whole", ignore)
    left = step

    def leave(_: StepReport) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_in(experiment, tmp_path / "left", ignore, leave)
    train_in(experiment, tmp_path / "left", ignore)
    assert_same(tmp_path / "left", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
def test_killed_thirty_times(tiny: Tiny, tmp_path: Path, seed: int) -> None:
    experiment = tiny(**{"train.epochs": 80, "train.checkpoint": 1e-9, "seed": seed, **EVERYTHING})
    train_in(experiment, tmp_path / "whole", ignore)
    assert kill_and_go_on(experiment, tmp_path / "killed", 8, random.Random(seed)) == 8
    assert_same(tmp_path / "killed" / "run", tmp_path / "whole")


def test_a_report_is_told_when_its_checkpoint_is_on_disk(tiny: Tiny, tmp_path: Path) -> None:
    def report(done: EpochReport) -> None:
        assert len(read_checkpoint(tmp_path / LAST)["history"]) >= done.epoch

    train_in(tiny(**{"train.checkpoint": "epoch"}), tmp_path, report)


class Crashed(Exception):  # noqa: N818
    """Stands for the end of the process: what is in its memory is gone."""


@pytest.mark.parametrize(
    ("decisions", "states", "bests"),
    [
        (None, {4}, {4}),
        (Decisions(first=1, factor=2, pauses=True), {1, 2, 4}, {1, 2, 4}),
        (Decisions(first=3, pauses=True), {3, 4}, {3, 4}),
        (Decisions(worth=2.0), {4}, {4}),
        (Decisions(first=2, factor=3), {4}, {2, 4}),
    ],
)
def test_a_report_waits_for_nothing_but_what_a_decision_needs(
    tiny: Tiny, tmp_path: Path, decisions: Decisions | None, states: set[int], bests: set[int]
) -> None:
    """No checkpoint is due by the clock; the last epoch's is written in any case."""
    experiment = tiny(**{"train.epochs": 4, "train.checkpoint": 1e6})
    found: dict[Path, set[int]] = {LAST: set(), BEST: set()}

    def report(done: EpochReport) -> None:
        if (tmp_path / LAST).exists() and len(read_checkpoint(tmp_path / LAST)["history"]) == done.epoch:
            found[LAST].add(done.epoch)
        if (tmp_path / BEST).exists() and read_checkpoint(tmp_path / BEST)["epoch"] == done.best_epoch:
            found[BEST].add(done.epoch)

    train_in(experiment, tmp_path, report, decisions=decisions)
    assert found[LAST] == states
    assert bests <= found[BEST]
    assert min(found[BEST]) == min(bests)


def test_what_a_kill_has_lost_is_trained_and_reported_again(tiny: Tiny, tmp_path: Path) -> None:
    """After the first epoch's checkpoint the next is never due: the second epoch is lost, and comes again the same."""
    experiment = tiny(**{"train.epochs": 4, "train.checkpoint": 1e6, **EVERYTHING})
    train_in(experiment, tmp_path / "whole", ignore)
    folder, first, again = tmp_path / "killed", [], []

    def report(done: EpochReport) -> None:
        first.append(done)
        if done.epoch == 3:
            raise Crashed

    with pytest.raises(Crashed):
        train_in(experiment, folder, report, decisions=Decisions(first=1, factor=10, pauses=True))
    assert len(read_checkpoint(folder / LAST)["history"]) == 1
    assert len(read_metrics(folder)) == 3
    trained: list[StepReport] = []
    result = train_in(experiment, folder, again.append, trained.append)
    assert result.epochs_run == 3
    assert {step.epoch for step in trained} == {2, 3, 4}
    untimed = [
        [{key: value for key, value in done.plain().items() if key not in TIMES} for done in reports]
        for reports in (first, again)
    ]
    assert untimed[0] == untimed[1][:3]
    assert_same(folder, tmp_path / "whole")
    losses = EventAccumulator(str(folder / EVENTS)).Reload().Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3, 4]


def test_the_best_waits_in_memory_until_a_stop(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"train.epochs": 3, "train.checkpoint": 1e6})
    reports: list[EpochReport] = []
    with pytest.raises(KeyboardInterrupt):
        train_in(experiment, tmp_path, reports.append, stop=lambda: len(reports) == 2)
    best = read_checkpoint(tmp_path / BEST)
    assert (best["epoch"], best["val"]) == (reports[1].best_epoch, reports[reports[1].best_epoch - 1].val)
    assert len(read_checkpoint(tmp_path / LAST)["history"]) == 2


def test_a_full_disk_is_told_at_the_write_that_meets_it(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs are reported before any write; the third's fails, in one line, and it is not reported."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    experiment, reports = tiny(**{"train.epochs": 3, "train.checkpoint": 1e6}), list[EpochReport]()
    open_data(experiment.data)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"best\.pt: cannot be written \(No space left on device\); free space") as told:
        train_in(experiment, tmp_path, reports.append)
    assert "\n" not in str(told.value)
    assert [done.epoch for done in reports] == [1, 2]
