"""What a search will take: the points there are, what would be refused, sizes, and hours. Runs no trial."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.config.expression import COSTS
from cdn_tune.distributed.cluster import slots as slots_on
from cdn_tune.errors import CdnTuneError, ConfigError, DataError
from cdn_tune.training.plan import Plan, make_plan
from cdn_tune.training.step.process_group import this_world
from cdn_tune.training.train_trial import open_data
from cdn_tune.tuning.planning.expected_epochs import expected_epochs
from cdn_tune.tuning.planning.preflight import check_steps, disk_gb, findings, this_machine
from cdn_tune.tuning.planning.random_points import Drawn, count_points, draw
from cdn_tune.tuning.storage.check import existing
from cdn_tune.tuning.study.candidates import GB, INVALID, Candidates, cost

PROPOSALS = 200  # random points that are judged
_SIZED = 24  # of them, those whose memory is estimated: it takes tenths of a second each
_HOUR = 3600.0


@dataclass(frozen=True)
class Range:
    """A cost over the points that may start.

    Attributes:
        low: The least.
        middle: The median.
        high: The most.
    """

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Duration:
    """How long a search takes, told from a few real steps of the base experiment.

    Attributes:
        trial: The base experiment's plan.
        epochs: Of all trials together, under early stopping; an upper bound for rules that depend on the values.
        full_epochs: Of all trials, were none stopped.
        trial_hours: Of all trials together.
        wall_hours: As many at once as there is room for; None if there is none.
        gpu_hours: Of all trials together.
    """

    trial: Plan
    epochs: float
    full_epochs: int
    trial_hours: float
    wall_hours: float | None
    gpu_hours: float


@dataclass(frozen=True)
class SearchPlan:
    """What a search will take.

    Attributes:
        space: What is searched.
        base: The base experiment.
        points: Number of points, a continuous parameter counted as one value.
        endless: Keys of the continuous parameters.
        trials: Trials in all.
        proposals: Random points that were judged.
        sized: Those of them whose memory was estimated.
        refused: Share of random proposals that may not start.
        reasons: Share by constraint, largest first; ``experiment`` stands for values that make no experiment.
        example: A reason by constraint.
        costs: Range of each cost over the points that may start.
        device: Where trials would compute, for the estimate of memory.
        available: This machine's resources, or the cluster's.
        slots: Trials at once; 0 if not even one can be placed.
        disk_gb: Most that checkpoints occupy.
        free_gb: Room on the run folder's disk.
        epochs: Epochs of all trials, under early stopping; None if it counts in steps and those are unknown.
        duration: The time; None if the data are missing.
        missing: Why the time was not measured.
        errors: What would be refused at the start.
        warnings: What would be warned of.
    """

    space: SearchSpace
    base: Experiment
    points: int
    endless: tuple[str, ...]
    trials: int
    proposals: int
    sized: int
    refused: float
    reasons: Mapping[str, float]
    example: Mapping[str, str]
    costs: Mapping[str, Range]
    device: str
    available: Mapping[str, float]
    slots: int
    disk_gb: float
    free_gb: float
    epochs: float | None
    duration: Duration | None
    missing: str | None
    errors: Sequence[str]
    warnings: Sequence[str]


def plan_search(
    space: SearchSpace,
    base: Experiment,
    run: Path,
    storage: str,
    trials: int | None = None,
    nodes: Sequence[Mapping[str, float]] | None = None,
    proposals: int = PROPOSALS,
) -> SearchPlan:
    """Plans a search. Starts no Ray and writes nothing but the node's cache of clips.

    Args:
        space: What is searched.
        base: The base experiment under all fixed overrides.
        run: The run folder; need not exist.
        storage: The study's URL.
        trials: Trials in all, in place of the space's.
        nodes: The resources of each node of a cluster; this machine's if None.
        proposals: Random points to judge, drawn with the sampler's seed.
    """
    candidates = Candidates(space, base)
    nodes = [this_machine()] if nodes is None else nodes
    count = _trials(space, candidates, trials)
    errors, warnings = findings(space, candidates, run, storage, nodes)
    try:
        slots = slots_on(space.resources, nodes)
    except CdnTuneError:
        slots = 0  # said among the errors
    sized = draw(candidates, min(_SIZED, proposals), space.sampler.seed)
    drawn = draw(candidates, proposals, space.sampler.seed, leave_out=("memory_gb",))
    reasons, example = _reasons(drawn, sized)
    refused = _share(drawn) + _share_of_memory(drawn, sized)
    if not any(point.experiment for point in sized):
        errors.append(f"constraints: none of {len(sized)} random proposals may start; loosen them, or the parameters")
    measured, missing = _measure(base)
    if measured is not None:
        try:
            check_steps(space, base, measured.queries["train"])
        except ConfigError as error:
            errors.append(str(error))
    steps = measured.steps_per_epoch if measured else None
    epochs = expected_epochs(space, base, count, steps)
    return SearchPlan(
        space=space,
        base=base,
        points=count_points(candidates),
        endless=tuple(key for key, parameter in space.parameters.items() if parameter.values is None),
        trials=count,
        proposals=len(drawn),
        sized=len(sized),
        refused=refused,
        reasons=reasons,
        example=example,
        costs=_costs(drawn, sized),
        device=this_world().device.type,
        available={name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")},
        slots=slots,
        disk_gb=disk_gb(space, candidates, max(slots, 1)),
        free_gb=shutil.disk_usage(existing(run)).free / GB,
        epochs=epochs,
        duration=_duration(space, base, measured, epochs, count, slots) if measured and epochs is not None else None,
        missing=missing,
        errors=errors,
        warnings=warnings,
    )


def _trials(space: SearchSpace, candidates: Candidates, trials: int | None) -> int:
    """Returns how many trials there will be: never more than a finite space has points."""
    wanted = trials or space.trials
    return min(wanted, count_points(candidates)) if space.is_finite else wanted


def _reasons(drawn: Sequence[Drawn], sized: Sequence[Drawn]) -> tuple[dict[str, float], dict[str, str]]:
    """Returns the share of points that break each constraint, and an example of each."""
    shares: dict[str, float] = {}
    examples: dict[str, str] = {}
    for points in (drawn, sized):  # constraints over memory are judged in the second alone
        names = {name for point in points for name, violation in point.verdict.violations.items() if violation > 0}
        for name in names - shares.keys():
            broken = [point for point in points if point.verdict.violations.get(name, 0.0) > 0]
            if points is sized and any(name in point.verdict.violations for point in drawn):
                continue
            shares[name] = len(broken) / len(points)
            said = (broken[0].verdict.reason or "").split("; ")
            examples[name] = next((reason for reason in said if reason.startswith(name)), said[0])
    return dict(sorted(shares.items(), key=lambda item: -item[1])), examples


def _share(points: Sequence[Drawn]) -> float:
    return sum(point.experiment is None for point in points) / len(points)


def _share_of_memory(drawn: Sequence[Drawn], sized: Sequence[Drawn]) -> float:
    """Returns the share of points that only a constraint over memory refuses; both draws begin with the same points."""
    only = sum(
        free.experiment is not None and full.experiment is None for free, full in zip(drawn, sized, strict=False)
    )
    return only / len(sized)


def _costs(drawn: Sequence[Drawn], sized: Sequence[Drawn]) -> dict[str, Range]:
    ranges = {}
    for name in COSTS:
        points = sized if name == "memory_gb" else drawn
        values = [cost(name, point.experiment) for point in points if point.experiment is not None]
        if values:
            ranges[name] = Range(min(values), median(values), max(values))
    return ranges


def _measure(base: Experiment) -> tuple[Plan | None, str | None]:
    """Returns the base experiment's plan from a few real steps, or why there is none."""
    try:
        return make_plan(base, open_data(base.data)), None
    except DataError as error:
        return None, str(error).splitlines()[0]


def _duration(space: SearchSpace, base: Experiment, measured: Plan, epochs: float, trials: int, slots: int) -> Duration:
    hours = epochs * measured.seconds_per_epoch / _HOUR
    at_once = min(slots, trials)
    return Duration(
        trial=measured,
        epochs=epochs,
        full_epochs=trials * base.train.epochs,
        trial_hours=hours,
        wall_hours=hours / at_once if at_once else None,
        gpu_hours=hours * space.resources.workers * space.resources.gpus_per_worker,
    )


def refused_name(name: str) -> str:
    """Returns a constraint as a person reads it."""
    return "values that do not go together" if name == INVALID else name
