"""One toy of each kind that a table lists, added as a program of one's own would: in one file, touching no other."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial
from torch import Tensor

from cdn_tune.config import tables
from cdn_tune.data.annotations import Scanned, Split, annotate
from cdn_tune.data.layouts import Layout
from cdn_tune.moments.metrics import Answers
from cdn_tune.training.step.optimiser import Schedule
from cdn_tune.tuning.results.leaderboard import COLUMNS, Column


class Ladder(RandomSampler):
    """Climbs through each real parameter in ten steps; draws the others at random."""

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:  # noqa: ARG002
        share = trial.number % 10 / 10
        reals = {name: each for name, each in search_space.items() if isinstance(each, FloatDistribution)}
        return {name: each.low * (each.high / each.low) ** share for name, each in reals.items()}


class Odd(BasePruner):
    """Stops every other trial."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:  # noqa: ARG002
        return trial.number % 2 == 1


class Stairs(Schedule):
    """Halves the learning rate at each quarter of the way."""

    def scale(self, progress: float) -> float:
        return float(0.5 ** int(4 * progress))


def starts_well(answers: Answers, iou: float) -> Tensor:
    """Whether the first moment starts within that share of the video from the true start."""
    wrong = (answers.top[:, 0, 0] - answers.moments[:, 0, 0]).abs()
    return (wrong <= iou * answers.durations).double()


def tsv_files(root: Path, split: Split) -> tuple[Path, ...]:
    return () if split == "val" else (root / f"{split}.tsv",)


def scan_tsv(root: Path, split: Split) -> Iterator[Scanned]:
    (path,) = tsv_files(root, split)
    with path.open(newline="", encoding="utf-8") as file:
        for line, (video, duration, start, end, query) in enumerate(csv.reader(file, delimiter="\t"), start=1):
            yield annotate(path, str(line), video, float(duration), float(start), float(end), query)


def restrict_tsv(root: Path, split: Split, kept: frozenset[str]) -> dict[str, str]:
    (path,) = tsv_files(root, split)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return {path.name: "".join(line for line in lines if line.partition("\t")[0] in kept)}


TSV = Layout(
    features=("tsv_features.hdf5",),
    files=tsv_files,
    scan=scan_tsv,
    recognise=lambda root: (root / "train.tsv").is_file(),
    restrict=restrict_tsv,
    ious=(0.4,),
)
LUCK = Column(
    key="luck",
    title="luck",
    meaning="What the number of the trial promises",
    value=lambda entry, _: 7 * entry.trial.number,
    terminal="always",
    page="always",
)


@contextmanager
def toys() -> Iterator[None]:
    """Adds the toys to the tables; they are taken out again for other tests."""
    tables.SAMPLERS.add("ladder", tables.Sampler(meaning="in steps", build=lambda _, seed: Ladder(seed=seed)))
    tables.STOPPING_RULES.add("odd", tables.StoppingRule(meaning="every other", build=lambda *_: Odd()))
    tables.SCHEDULES.add("stairs", tables.Schedule(meaning="halved each quarter", build=Stairs))
    tables.LAYOUTS.add("tsv", tables.Dataset(meaning="tab-separated", layout=TSV))
    tables.METRICS.add("start@{iou}", tables.Metric(meaning="starts well", per_query=starts_well))
    COLUMNS.append(LUCK)
    try:
        yield
    finally:
        COLUMNS.remove(LUCK)
        for table, name in (
            (tables.SAMPLERS, "ladder"),
            (tables.STOPPING_RULES, "odd"),
            (tables.SCHEDULES, "stairs"),
            (tables.LAYOUTS, "tsv"),
            (tables.METRICS, "start@{iou}"),
        ):
            del table[name]
