"""What a search will take: the points there are, what would be refused, sizes, and hours. Runs no trial."""

import math
import shutil
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from statistics import median

import numpy as np

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.config.expression import COSTS
from cdn_tune.data.splits import coarse
from cdn_tune.distributed.cluster import slots as slots_on
from cdn_tune.errors import CdnTuneError, ConfigError, DataError
from cdn_tune.training.plan import Plan, make_plan
from cdn_tune.training.step.process_group import this_world
from cdn_tune.training.step.threads import threads_for
from cdn_tune.training.train_trial import open_data
from cdn_tune.tuning.planning.preflight import check_steps, disk_gb, findings, holding, this_machine
from cdn_tune.tuning.planning.random_points import Drawn, count_points, draw
from cdn_tune.tuning.storage.check import existing
from cdn_tune.tuning.study.candidates import GB, INVALID, Candidates, cost

PROPOSALS = 200  # random points that are judged
_SIZED = 24  # of them, those whose memory is estimated: it takes tenths of a second each
_HOUR = 3600.0
HALVING = ("asha", "hyperband")
_PLAYS = 40
_PLAYED = 1000  # trials of a play; more train as long on average


@dataclass(frozen=True)
class Range:
    """A cost over the points that may start: least, median, most."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Duration:
    """How long a search takes, by a few real steps of the base experiment."""

    trial: Plan  # of the base experiment
    epochs: float  # of all trials together, under early stopping; see `expected_epochs`
    full_epochs: int  # of all trials, were none stopped
    trial_hours: float  # of all trials together
    wall_hours: float | None  # as many at once as there is room for; None if there is none
    gpu_hours: float  # of all trials together


@dataclass(frozen=True)
class SearchPlan:
    """What a search will take."""

    space: SearchSpace
    base: Experiment
    points: int  # of the space, a continuous parameter counted as one value
    endless: tuple[str, ...]  # keys of the continuous parameters
    trials: int  # in all
    proposals: int  # random points that were judged
    sized: int  # those of them whose memory was estimated
    refused: float  # share of random proposals that may not start
    reasons: Mapping[str, float]  # share by constraint, largest first; `INVALID` for values that make no experiment
    example: Mapping[str, str]  # a reason by constraint
    costs: Mapping[str, Range]  # over the points that may start
    device: str  # where trials would compute, for the estimate of memory
    available: Mapping[str, float]  # this machine's resources, or the cluster's
    slots: int  # trials at once; 0 if not even one can be placed
    disk_gb: float  # most that checkpoints occupy
    free_gb: float  # room on the run folder's disk
    epochs: float | None  # of all trials, under early stopping; None if it counts in steps and those are unknown
    duration: Duration | None  # None if the data are missing
    missing: str | None  # why the time was not measured
    errors: Sequence[str]  # what would be refused at the start
    warnings: Sequence[str]  # what would be warned of at the start


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
    points, trials = count_points(candidates), trials or space.trials
    if space.is_finite:
        trials = min(trials, points)
    errors, warnings = findings(space, candidates, run, storage, nodes, trials)
    try:
        slots = slots_on(space.resources, nodes)
    except CdnTuneError:
        slots = 0  # among the errors
    sized = draw(candidates, min(_SIZED, proposals), space.sampler.seed)
    drawn = draw(candidates, proposals, space.sampler.seed, leave_out=("memory_gb",))
    reasons, example = _reasons(drawn, sized)
    refused = sum(point.experiment is None for point in drawn) / len(drawn)
    # Both draws begin with the same points: these are refused by a constraint over memory alone.
    pairs = zip(drawn, sized, strict=False)
    refused += sum(free.experiment is not None and full.experiment is None for free, full in pairs) / len(sized)
    if not any(point.experiment for point in sized):
        errors.append(f"constraints: none of {len(sized)} random proposals may start; loosen them, or the parameters")
    measured, missing = _measure(base, threads_for(base, space.resources.cpus_per_worker))
    if measured is not None:
        if remark := coarse(measured.queries["val"]):
            warnings.append(remark)
        try:
            check_steps(space, base, measured.queries["train"])
        except ConfigError as error:
            errors.append(str(error))
    epochs = expected_epochs(space, base, trials, measured.steps_per_epoch if measured else None)
    return SearchPlan(
        space=space,
        base=base,
        points=points,
        endless=tuple(key for key, parameter in space.parameters.items() if parameter.values is None),
        trials=trials,
        proposals=len(drawn),
        sized=len(sized),
        refused=refused,
        reasons=reasons,
        example=example,
        costs=_costs(drawn, sized),
        device=this_world().device.type,
        available={name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")},
        slots=slots,
        disk_gb=disk_gb(space, candidates, holding(space, max(slots, 1), trials)),
        free_gb=shutil.disk_usage(existing(run)).free / GB,
        epochs=epochs,
        duration=_duration(space, base, measured, epochs, trials, slots) if measured and epochs is not None else None,
        missing=missing,
        errors=errors,
        warnings=warnings,
    )


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
            given = (broken[0].verdict.reason or "").split("; ")
            examples[name] = next((reason for reason in given if reason.startswith(name)), given[0])
    return dict(sorted(shares.items(), key=lambda item: -item[1])), examples


def _costs(drawn: Sequence[Drawn], sized: Sequence[Drawn]) -> dict[str, Range]:
    ranges = {}
    for name in COSTS:
        points = sized if name == "memory_gb" else drawn
        values = [cost(name, point.experiment) for point in points if point.experiment is not None]
        if values:
            ranges[name] = Range(min(values), median(values), max(values))
    return ranges


def _measure(base: Experiment, threads: int) -> tuple[Plan | None, str | None]:
    """Returns the base experiment's plan from a few real steps, or why there is none."""
    try:
        return make_plan(base, open_data(base.data, base.model.inputs.sequences), threads=threads), None
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


def expected_epochs(
    space: SearchSpace, experiment: Experiment, trials: int, steps_per_epoch: int | None = None
) -> float | None:
    """Returns the epochs that all trials together are expected to train; None if its unit is unknown in epochs.

    Successive halving is played on random values: a trial goes on from a rung if its value is among the best
    ``max(floor(n / eta), 1)`` of the n that have arrived there, itself included, without waiting for others
    (asynchronous successive halving, arXiv 1810.05934; Optuna's `SuccessiveHalvingPruner`). Hyperband spreads its
    trials over brackets of successive halving that begin later and later, in proportion to
    ``ceil(brackets * eta^s / (s + 1))`` (Optuna's `HyperbandPruner`). It is assumed that the order of trials at one
    rung is their order at the next, and that they arrive in no order; a sampler that proposes better and better trials
    trains somewhat longer. With ``mode: promote`` a trial goes on once it is among the best ``floor(n / eta)``, also
    later. What the other rules stop depends on the values themselves, so the full length is returned for them: an upper
    bound.
    """
    rule, length = space.early_stopping, experiment.train.epochs
    if rule.name not in HALVING:
        return float(trials * length)
    if rule.unit == "seconds" or (rule.unit == "step" and steps_per_epoch is None):
        return None
    scale = 1 if rule.unit == "epoch" else steps_per_epoch or 1
    evaluated = sorted({*range(1, length + 1, experiment.train.eval_every), length})
    eta, least = rule.reduction_factor, rule.min_resource

    def rungs(bracket: int) -> list[int]:
        """Epochs at whose end a bracket's trials are compared."""
        resources = (least * eta ** (bracket + rung) for rung in count())
        ends = takewhile(lambda resource: resource <= length * scale, resources)
        return [next(epoch for epoch in evaluated if epoch * scale >= resource) for resource in ends]

    brackets = 1
    if rule.name == "hyperband":
        brackets = max(math.floor(math.log(length * scale / least, eta) + 1e-9) + 1, 1)
    shares = np.array([math.ceil(brackets * eta**s / (s + 1)) for s in reversed(range(brackets))], dtype=float)
    generator = np.random.default_rng(0)
    epochs, played = 0, min(trials, _PLAYED)
    for _ in range(_PLAYS):
        of_brackets = generator.choice(brackets, size=played, p=shares / shares.sum())
        for bracket in range(brackets):
            values = generator.random(int((of_brackets == bracket).sum()))
            play = _played_with_pauses if rule.mode == "promote" else _played
            epochs += play(values.tolist(), rungs(bracket), length, eta)
    return epochs / _PLAYS * (trials / played)


def _played(values: list[float], rungs: list[int], length: int, eta: int) -> int:
    """Returns the epochs that one bracket's trials train, one after the other, each with one value throughout."""
    arrived: list[list[float]] = [[] for _ in rungs]
    epochs = 0
    for value in values:
        trained = length
        for rung, others in zip(rungs, arrived, strict=True):
            insort(others, value)
            if sum(other > value for other in others) >= max(len(others) // eta, 1):
                trained = rung
                break
        epochs += trained
    return epochs


def _played_with_pauses(values: list[float], rungs: list[int], length: int, eta: int) -> int:
    """As `_played`, if trials pause at rungs, and go on once they are among the best ``floor(n / eta)``."""
    epochs = reached = 0
    for rung in rungs:
        if rung >= length:
            break
        epochs += len(values) * (rung - reached)
        arrived: list[float] = []
        going_on: dict[float, None] = {}
        for value in values:
            insort(arrived, value)
            if quota := len(arrived) // eta:
                going_on |= dict.fromkeys(each for each in (value, arrived[-quota]) if each >= arrived[-quota])
        values, reached = list(going_on) or values[:1], rung
    return epochs + len(values) * (length - reached)


def refused_name(name: str) -> str:
    """Returns a constraint in words."""
    return "values that do not go together" if name == INVALID else name
