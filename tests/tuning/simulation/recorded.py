"""Searches recorded on real Ray, and what is on record of their decisions.

``python -m tests.tuning.simulation.recorded`` makes the fixture ``recorded-searches.tar.xz``: one search at one slot,
one at two, of two CPUs.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdn_tune.config import Experiment, SearchSpace, override
from cdn_tune.data.planted import plant
from cdn_tune.training.reports import StepReport
from cdn_tune.training.train_trial import train_in
from cdn_tune.tuning.layout import JOURNAL
from cdn_tune.tuning.progress import SearchState
from cdn_tune.tuning.results.record import Record, read_record
from cdn_tune.tuning.search import SearchOptions, search
from tests.conftest import TINY
from tests.fixtures.make_runs import PLANT

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures" / "recorded-searches.tar.xz"
PACKED = ("manifest.json", "experiment.yaml", "search_space.yaml", JOURNAL, "trials/*/metrics.jsonl")
TRIALS, EPOCHS, STEP_SECONDS = 12, 6, 0.05
# Places of Optuna's journal format.
REPORTED, STATE_SET, TRIAL_CREATED = 7, 6, 4
PRUNED = 2


def ignore(_: SearchState) -> None:
    """Shows nothing."""


def record_search(folder: Path, data: Path, slots: int, cpus: int) -> Record:
    """Runs a search of tiny trials on Ray; a step sleeps, by the number of layers, so that CPUs are idle."""

    def slowed(experiment: Experiment, *arguments: Any, **options: Any) -> object:
        def sleep(_: StepReport) -> None:
            time.sleep(STEP_SECONDS * (1 + 0.37 * experiment.model.map.layers))  # type: ignore[attr-defined]

        return train_in(experiment, *arguments, on_step=sleep, **options)

    base = override({**TINY, "data": {**TINY["data"], "root": str(data)}}, {"train.epochs": EPOCHS}, "tiny")
    plain = {
        "name": f"slots-{slots}",
        "experiment": "tiny",
        "parameters": {
            "optim.lr": {"type": "float", "low": 1e-4, "high": 3e-2, "log": True},
            "model.map.layers": {"type": "int", "low": 1, "high": 3},
            "train.batch_size": {"type": "categorical", "choices": [8, 16]},
        },
        "trials": TRIALS,
        "sampler": {"name": "tpe", "startup_trials": 4, "seed": 5},
        "early_stopping": {"name": "asha", "min_resource": 1, "reduction_factor": 2},
        "resources": {"cpus_per_worker": cpus // slots},
    }
    run = folder / str(plain["name"])
    search(SearchSpace.model_validate(plain, strict=False), base, run, ignore, SearchOptions(train=slowed))
    return read_record(run)


@dataclass(frozen=True)
class Decided:
    """What a search has decided, in order.

    Attributes:
        reports: Trial, epoch and best value so far, of every report.
        stopped: Trial and epoch of every stop.
        params: Each trial's, by number.
        before: How many reports were on record when a trial was proposed, by number.
    """

    reports: list[tuple[int, int, float]]
    stopped: list[tuple[int, int]]
    params: list[dict[str, Any]]
    before: list[int]


def decided(record: Record) -> Decided:
    """Reads a search's decisions in the order in which its journal has them."""
    reports: list[tuple[int, int, float]] = []
    stopped: list[tuple[int, int]] = []
    last: dict[int, int] = {}
    before: list[int] = []
    for line in (record.run / JOURNAL).read_text().splitlines():
        entry = json.loads(line)
        number = entry.get("trial_id")
        if entry["op_code"] == TRIAL_CREATED:
            before.append(len(reports))
        elif entry["op_code"] == REPORTED:
            last[number] = entry["step"]
            reports.append((number, entry["step"], entry["intermediate_value"]))
        elif entry["op_code"] == STATE_SET and entry["state"] == PRUNED:
            stopped.append((number, last[number]))
    return Decided(reports, stopped, [trial.params for trial in record.entries], before)


def makespan(record: Record) -> float:
    """Returns the seconds from the first trial's proposal to the last one's end."""
    begins = [trial.datetime_start.timestamp() for trial in record.entries if trial.datetime_start]
    ends = [trial.datetime_complete.timestamp() for trial in record.entries if trial.datetime_complete]
    return max(ends) - min(begins)


def unpacked(folder: Path) -> dict[int, Record]:
    """Returns the recorded searches of the fixture by their slots."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(folder, filter="data")
    return {slots: read_record(folder / f"slots-{slots}") for slots in (1, 2)}


def main() -> None:
    """Makes the fixture."""
    from cdn_tune.distributed.cluster import connected

    with tempfile.TemporaryDirectory() as name, connected() as resources:
        folder = Path(name)
        plant(folder / "data", **PLANT)  # type: ignore[arg-type]
        for slots in (1, 2):
            record = record_search(folder, folder / "data", slots, int(resources["CPU"]))
            stopped, seconds = len(decided(record).stopped), makespan(record)
            sys.stderr.write(f"{slots} slots: {len(record.entries)} trials, {stopped} stopped, {seconds:.1f} s\n")
        with tarfile.open(FIXTURE, "w:xz") as archive:
            for slots in (1, 2):
                run = folder / f"slots-{slots}"
                for pattern in PACKED:
                    for path in sorted(run.glob(pattern)):
                        archive.add(path, path.relative_to(folder))


if __name__ == "__main__":
    main()
