"""A search whose trials pause and are promoted, on real Ray, killed at random: CDN_TUNE_KILLS times."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState

from cdn_tune.config import Experiment
from cdn_tune.training.reports import ignore
from cdn_tune.training.runs.checkpoint import load_checkpoint
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.training.step.threads import threads_for
from cdn_tune.training.train_trial import train_in
from cdn_tune.tuning.layout import trial_folder
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.study.ranking import PROMOTED, is_paused

from .processes import Driver, command, end, finish, recorded, write_space

Tiny = Callable[..., Experiment]
KILLS = int(os.environ.get("CDN_TUNE_KILLS", "3"))
SEED = int(os.environ.get("CDN_TUNE_KILLS_SEED", "0"))
EPOCHS, RUNGS, TRIALS = 9, (1, 2, 4, 8), 8
STOPPING = {"name": "asha", "mode": "promote", "min_resource": 1, "reduction_factor": 2}


@pytest.mark.slow
@pytest.mark.timeout(900 + 90 * KILLS)
@pytest.mark.parametrize("workers", [1, 2])
def test_random_kills(workers: int, tiny: Tiny, tmp_path: Path) -> None:
    """Every trial is on record once, with every epoch once, and ends as if nothing had been."""
    generator, left, seen = random.Random(SEED), KILLS, Counter[str]()
    for number in range(KILLS + 1):
        run = tmp_path / f"run-{number}"
        folder = tmp_path / f"space-{number}"
        folder.mkdir()
        experiment = tiny(**{"train.epochs": EPOCHS, "train.checkpoint": 1e-9})
        sampler = {"name": "random", "seed": number}
        resources = {"workers": workers}
        space = write_space(
            folder, experiment, trials=TRIALS, early_stopping=STOPPING, sampler=sampler, resources=resources
        )
        arguments = command(space, run)
        while left and not has_ended(run):
            left -= kill_once(Driver(arguments, tmp_path / "log"), run, generator, seen)
        finish(arguments, seconds=600)
        check_accounts(run)
        if not left:
            break
    check_exactness(run, tmp_path / "alone", workers)
    print(f"kills: {dict(seen)}")  # noqa: T201


def has_ended(run: Path) -> bool:
    record = recorded(run)
    return len(record) == TRIALS and all(trial.state.is_finished() for trial in record)


def reports(run: Path) -> int:
    return sum(len(trial.intermediate_values) for trial in recorded(run))


def kill_once(driver: Driver, run: Path, generator: random.Random, seen: Counter[str]) -> int:
    """Kills a driver with all its processes, some time after it reports; returns whether it lived until then."""
    known = reports(run)
    try:
        if not driver.wait_until(lambda: reports(run) > known, 400):
            return 0
        time.sleep(generator.uniform(0.0, 4.0))
        if driver.process.poll() is not None:
            return 0
        if workers := driver.workers():
            end(generator.choice(workers))
        seen["with paused trials" if any(map(is_paused, recorded(run))) else "without"] += 1
        return 1
    finally:
        driver.kill(everything=True)


def check_accounts(run: Path) -> None:
    record = recorded(run)
    assert [trial.number for trial in record] == list(range(TRIALS))
    for trial in record:
        assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED), trial.user_attrs
        told = [entry["epoch"] for entry in read_metrics(trial_folder(run, trial.number))]
        assert sorted(trial.intermediate_values) == list(range(1, len(trial.intermediate_values) + 1))
        assert told[: len(trial.intermediate_values)] == sorted(trial.intermediate_values)
        assert told == list(range(1, len(told) + 1))
        if trial.state == TrialState.PRUNED:
            assert len(trial.intermediate_values) in RUNGS
            assert trial.user_attrs["reason"].startswith("stopped early: paused after epoch")
    assert any(trial.state == TrialState.COMPLETE for trial in record)
    best = max(record, key=lambda trial: (trial.value or 0.0, -trial.number))
    kept = load_checkpoint(run / "best" / f"trial-{best.number:04d}" / "checkpoint.pt")
    assert kept.value == pytest.approx(best.value)


def check_exactness(run: Path, folder: Path, workers: int) -> None:
    """A trial that was paused and promoted is that which trains alone without a pause, bit by bit."""
    if workers > 1:
        return
    complete = [trial for trial in recorded(run) if trial.state == TrialState.COMPLETE]
    number = max(complete, key=lambda trial: trial.user_attrs.get(PROMOTED, 0)).number
    experiment = read_record(run).experiment(number)
    train_in(experiment, folder, ignore, threads=threads_for(experiment, 1))
    keys = ("epoch", "loss", "val", "best_value")
    paused, whole = (
        [{key: entry[key] for key in keys} for entry in read_metrics(path)]
        for path in (trial_folder(run, number), folder)
    )
    assert paused == whole
