"""A search whose nodes, workers and driver are killed at random, for as long as CDN_TUNE_CHAOS_MINUTES says."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from cdn_tune.config import Experiment
from cdn_tune.training.runs.checkpoint import load_checkpoint
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.tuning.layout import trial_folder

from .clusters import RayCluster, ray_cluster, wait_for
from .processes import Driver, command, end, recorded, write_space

Tiny = Callable[..., Experiment]
MINUTES = float(os.environ.get("CDN_TUNE_CHAOS_MINUTES", "30"))
SEED = int(os.environ.get("CDN_TUNE_CHAOS_SEED", "0"))
PAUSES = (20.0, 60.0)  # seconds between kills
EPOCHS = 60
ENOUGH = 100_000  # trials: more than there is time for


class Chaos:
    """Kills at random what runs a search, and replaces it.

    Args:
        cluster: Whose nodes are killed; the head lives, so that the driver has where to join.
        start: Starts the driver.
        generator: Chooses.
    """

    def __init__(self, cluster: RayCluster, start: Callable[[], Driver], generator: random.Random) -> None:
        self._cluster, self._start, self._generator = cluster, start, generator
        self.driver = start()
        self.kills: Counter[str] = Counter()
        self._added = 0

    def strike(self) -> None:
        """Kills one thing."""
        whom = self._generator.choice(("node", "worker", "driver"))
        workers = [pid for name in self._cluster.raylets for pid in self._cluster.workers(name)]
        if whom == "worker" and workers:
            end(self._generator.choice(workers))
        elif whom == "driver":
            self.driver.kill()
            self.driver = self._start()
        else:
            whom = "node"
            name = self._generator.choice([name for name in self._cluster.raylets if name != "head"])
            self._cluster.kill(name)
            self._added += 1
            self._cluster.add(f"spare-{self._added}", 1)
        self.kills[whom] += 1


@pytest.mark.slow
@pytest.mark.timeout(60 * MINUTES + 900)
def test_chaos(tiny: Tiny, tmp_path: Path) -> None:
    """All trials are accounted for exactly once, the best checkpoint is intact, nothing is left behind."""
    run = tmp_path / "run"
    experiment = tiny(**{"train.epochs": EPOCHS, "train.checkpoint": 1e-9})
    stopping = {"name": "asha", "min_resource": 10, "reduction_factor": 2}
    space = write_space(tmp_path, experiment, trials=ENOUGH, early_stopping=stopping, max_failures=20, keep=3)
    generator = random.Random(SEED)
    seen: dict[int, tuple[Any, ...]] = {}
    points: dict[int, dict[str, Any]] = {}
    with ray_cluster(tmp_path, head=1, first=1, second=1) as cluster:
        arguments = [*command(space, run), "--address", cluster.address]
        chaos = Chaos(cluster, lambda: Driver(arguments, tmp_path / "log"), generator)
        try:
            until = time.monotonic() + 60 * MINUTES
            while time.monotonic() < until:
                time.sleep(min(generator.uniform(*PAUSES), max(until - time.monotonic(), 0.0)))
                check_record(run, seen, points)
                assert chaos.driver.process.poll() is None, chaos.driver.log.read_text()
                chaos.strike()
            known = reports(run)
            wait_for(lambda: reports(run) > known, 300)  # the last driver may be starting yet
            os.kill(chaos.driver.process.pid, signal.SIGINT)
            chaos.driver.process.wait(timeout=180)
        finally:
            chaos.driver.kill()
        log = chaos.driver.log.read_text()
        assert chaos.driver.process.returncode == 130, log
        known = len(recorded(run))
        final = [*arguments, "--resume", "--trials", str(known)]
        driver = Driver(final, tmp_path / "log")  # those under way, to their end
        try:
            driver.process.wait(timeout=400)
        finally:
            driver.kill()
        log = driver.log.read_text()
        assert driver.process.returncode == 0, log
        assert "left behind" not in log
    check_record(run, seen, points)
    record = recorded(run)
    assert len(record) == known
    check_accounts(run)
    print(f"kills: {dict(chaos.kills)}; trials: {Counter(trial.state.name for trial in record)}")  # noqa: T201


def reports(run: Path) -> int:
    """Returns how many epochs are on record."""
    return sum(len(trial.intermediate_values) for trial in recorded(run))


def check_record(run: Path, seen: dict[int, tuple[Any, ...]], points: dict[int, dict[str, Any]]) -> None:
    """What has ended stays as it ended, and a trial keeps its parameters, whatever dies."""
    record = recorded(run)
    now = {trial.number: trial for trial in record}
    assert seen.keys() <= now.keys()
    assert points.keys() <= now.keys()
    for number, (state, value, curve) in seen.items():
        assert (now[number].state, now[number].value, now[number].intermediate_values) == (state, value, curve)
    for trial in record:
        assert points.setdefault(trial.number, trial.params).items() <= trial.params.items()
        if trial.state.is_finished():
            seen[trial.number] = (trial.state, trial.value, trial.intermediate_values)


def check_accounts(run: Path) -> None:
    """Every trial is on record once, as what it was, with every epoch once."""
    record = recorded(run)
    assert [trial.number for trial in record] == sorted({trial.number for trial in record})
    for trial in record:
        assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED), (trial.number, trial.user_attrs)
        told = [entry["epoch"] for entry in read_metrics(trial_folder(run, trial.number))]
        assert told == list(range(1, len(told) + 1))
        assert sorted(trial.intermediate_values) == told[: len(trial.intermediate_values)]
        if trial.state == TrialState.COMPLETE:
            assert len(told) == EPOCHS
    best = max(record, key=lambda trial: (trial.value or 0.0, -trial.number))
    kept = load_checkpoint(run / "best" / f"trial-{best.number:04d}" / "checkpoint.pt")
    assert kept.value == pytest.approx(best.value)
