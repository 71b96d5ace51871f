"""What a search will take: the points there are, what would be refused, sizes, and hours. Runs no trial."""

import math
import os
import shutil
import tempfile
import time
from bisect import insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from statistics import mean, median

import numpy as np

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.config.check import FAMILY
from cdn_tune.config.expression import COSTS
from cdn_tune.data.splits import coarse
from cdn_tune.distributed.cluster import slots as slots_on
from cdn_tune.errors import CdnTuneError, ConfigError, DataError
from cdn_tune.training.memory.estimate import written_bytes
from cdn_tune.training.plan import Plan, make_plan
from cdn_tune.training.runs.pace import Pace
from cdn_tune.training.step.process_group import this_world
from cdn_tune.training.step.threads import threads_for
from cdn_tune.training.train_trial import open_data
from cdn_tune.tuning.planning.preflight import check_confirm, disk_gb, findings, holding, most_steps, this_machine
from cdn_tune.tuning.planning.random_points import Drawn, count_points, draw
from cdn_tune.tuning.storage.check import existing
from cdn_tune.tuning.study.candidates import GB, INVALID, Candidates, cost
from cdn_tune.tuning.study.rungs import brackets

PROPOSALS = 200  # random points that are judged
_SIZED = 24  # of them, those whose memory is estimated: it takes tenths of a second each
_ENOUGH = 8  # refused points of a family that are no chance
_HOUR = 3600.0
_PLAYS = 40
_PLAYED = 1000  # trials of a play; more train as long on average
_TIMED_BYTES = 1 << 26  # written to time the disk
_Draw = tuple[float, str]  # a trial of a play: its value throughout, and its family


@dataclass(frozen=True)
class Range:
    """A cost over the points that may start: least, median, most."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Duration:
    """How long a search takes, by a few real steps of every family's base experiment."""

    measured: Mapping[str, Plan]  # of the base experiment of each family
    trial_hours: float  # of all trials together
    wall_hours: float | None  # as many at once as there is room for; None if there is none
    gpu_hours: float  # of all trials together


@dataclass(frozen=True)
class Writes:
    """What the trials' checkpoints ask of the run folder's disk, by base experiments and a timed write."""

    gb_per_second: float  # of all trials at once by the clock; besides, what a decision at a rung needs
    disk_gb_per_second: float  # of one write


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
    full_epochs: int  # of all trials, were none stopped
    writes: Writes | None  # None if the data are missing, or nothing can be written there
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
    """Plans a search. Starts no Ray and writes nothing but the node's cache of clips, and a file that is gone again.

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
    points, asked = count_points(candidates), trials or space.trials
    trials = min(asked, points + space.confirm.trials) if space.is_finite else asked
    errors, warnings = findings(space, candidates, run, storage, nodes, trials)
    try:
        check_confirm(space, asked)
    except ConfigError as error:
        errors.append(str(error))
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
    families = candidates.by_family()
    warnings += _never_starting(families, drawn)
    measured, missing = _measure(families, space.resources.cpus_per_worker)
    steps = {name: plan.steps_per_epoch for name, plan in measured.items()} if measured else None
    if measured:
        if remark := coarse(max(plan.queries["val"] for plan in measured.values())):
            warnings.append(remark)
        try:
            most_steps(space, families.values())
        except ConfigError as error:
            errors.append(str(error))
    epochs = expected_epochs(space, families, trials, steps)
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
        epochs=None if epochs is None else sum(epochs.values()),
        full_epochs=round(trials * mean(each.train.epochs for each in families.values())),
        writes=_writes(families, measured, min(slots, trials), existing(run)) if measured else None,
        duration=_duration(space, measured, epochs, min(slots, trials)) if measured and epochs is not None else None,
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


def _never_starting(families: Mapping[str, Experiment], drawn: Sequence[Drawn]) -> list[str]:
    """Returns a warning of each family of which points were drawn and none may start, while others may."""
    started = {point.experiment.model.name for point in drawn if point.experiment is not None}
    refused: dict[str, list[str]] = {}
    for point in drawn:
        if (name := point.params.get(FAMILY)) is not None and name not in started:
            refused.setdefault(str(name), []).append(point.verdict.reason or "")
    return [
        f"model.name={name}: none of its {len(refused[name])} random proposals may start, the first since "
        f"{refused[name][0]}; loosen the constraints, or take it out"
        for name in families
        if started and len(refused.get(name, ())) >= _ENOUGH
    ]


def _costs(drawn: Sequence[Drawn], sized: Sequence[Drawn]) -> dict[str, Range]:
    ranges = {}
    for name in COSTS:
        points = sized if name == "memory_gb" else drawn
        values = [cost(name, point.experiment) for point in points if point.experiment is not None]
        if values:
            ranges[name] = Range(min(values), median(values), max(values))
    return ranges


def _measure(families: Mapping[str, Experiment], cpus: int) -> tuple[dict[str, Plan] | None, str | None]:
    """Returns the plan of every family's base experiment from a few real steps, or why there is none."""
    try:
        return {
            name: make_plan(base, open_data(base.data, base.model.inputs.sequences), threads=threads_for(base, cpus))
            for name, base in families.items()
        }, None
    except DataError as error:
        return None, str(error).splitlines()[0]


def _writes(
    families: Mapping[str, Experiment], measured: Mapping[str, Plan], at_once: int, folder: Path
) -> Writes | None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            began = time.perf_counter()
            file.write(os.urandom(_TIMED_BYTES))
            file.flush()
            os.fsync(file.fileno())
            disk = _TIMED_BYTES / (time.perf_counter() - began)
    except OSError:
        return None  # the preflight reports it
    sizes = {name: written_bytes(base) for name, base in families.items()}
    rates = [
        Pace.rate(base.train.checkpoint, sizes[name], sizes[name] / disk, measured[name].seconds_per_epoch)
        for name, base in families.items()
    ]
    return Writes(at_once * max(rates) / GB, disk / GB)


def _duration(space: SearchSpace, measured: Mapping[str, Plan], epochs: Mapping[str, float], at_once: int) -> Duration:
    hours = sum(epochs[name] * plan.seconds_per_epoch for name, plan in measured.items()) / _HOUR
    return Duration(
        measured=measured,
        trial_hours=hours,
        wall_hours=hours / at_once if at_once else None,
        gpu_hours=hours * space.resources.workers * space.resources.gpus_per_worker,
    )


def expected_epochs(
    space: SearchSpace, families: Mapping[str, Experiment], trials: int, steps: Mapping[str, int] | None = None
) -> dict[str, float] | None:
    """Returns the epochs that all trials together are expected to train, by family; None if its unit is unknown.

    Families have equal shares of the trials. Successive halving is played on random values: a trial goes on from a rung
    if its value is among the best ``max(floor(n / eta), 1)`` of the n that have arrived there, itself included, without
    waiting for others (asynchronous successive halving, arXiv 1810.05934; Optuna's `SuccessiveHalvingPruner`).
    Hyperband spreads its trials over brackets of successive halving that begin later and later, in proportion to
    ``ceil(brackets * eta^s / (s + 1))`` (Optuna's `HyperbandPruner`). It is assumed that the order of trials at one
    rung is their order at the next, and that they arrive in no order; a sampler that proposes better and better trials
    trains somewhat longer. With ``mode: promote`` a trial goes on once it is among the best ``floor(n / eta)``, also
    later. What the other rules stop depends on the values themselves, so the full length is returned for them: an upper
    bound. Confirmations, here of any family, train to their end.

    Args:
        space: What is searched.
        families: The base experiment of every family.
        trials: Trials in all.
        steps: Optimiser steps of an epoch of each; needed where progress is counted in them.
    """
    rule = space.early_stopping
    if not rule.row.brackets:
        return {name: trials / len(families) * base.train.epochs for name, base in families.items()}
    whole = min(space.confirm.trials, trials - 1)
    trials -= whole
    if rule.unit == "seconds" or (rule.unit == "step" and steps is None):
        return None
    scales = {name: 1 if rule.unit == "epoch" else (steps or {})[name] for name in families}
    eta, least = rule.reduction_factor, rule.least

    def ends(name: str, bracket: int) -> list[int]:
        """Epochs of a family at whose end the trials of a bracket are compared, and the last one."""
        train, scale = families[name].train, scales[name]
        evaluated = sorted({*range(1, train.epochs + 1, train.eval_every), train.epochs})
        resources = (least * eta ** (bracket + rung) for rung in count())
        rungs = takewhile(lambda resource: resource <= train.epochs * scale, resources)
        return [*(next(epoch for epoch in evaluated if epoch * scale >= rung) for rung in rungs), train.epochs]

    longest = max(base.train.epochs * scales[name] for name, base in families.items())
    number = brackets(least, longest, eta) if rule.row.brackets == "all" else 1
    shares = np.array([math.ceil(number * eta**s / (s + 1)) for s in reversed(range(number))], dtype=float)
    compared = [{name: ends(name, bracket) for name in families} for bracket in range(number)]
    play = _played_with_pauses if rule.mode == "promote" else _played
    generator = np.random.default_rng(0)
    epochs, played = dict.fromkeys(families, 0), min(trials, _PLAYED)
    for _ in range(_PLAYS):
        of_brackets = generator.choice(number, size=played, p=shares / shares.sum()).tolist()
        of_families = generator.choice(list(families), size=played).tolist()
        by_bracket = defaultdict(list)
        for bracket, value, name in zip(of_brackets, generator.random(played).tolist(), of_families, strict=True):
            by_bracket[bracket].append((value, name))
        for bracket, drawn in by_bracket.items():
            for (_, name), reached in play(drawn, compared[bracket], eta).items():
                epochs[name] += compared[bracket][name][reached]
    return {
        name: sum_ / _PLAYS * (trials / played) + whole / len(families) * families[name].train.epochs
        for name, sum_ in epochs.items()
    }


def _played(drawn: Sequence[_Draw], ends: Mapping[str, Sequence[int]], eta: int) -> dict[_Draw, int]:
    """Returns at which of its family's `ends` each of a bracket's trials ends, if they come one after the other."""
    arrived: defaultdict[int, list[float]] = defaultdict(list)  # values at a rung
    reached = {}
    for value, name in drawn:
        reached[value, name] = last = len(ends[name]) - 1
        for rung in range(last):
            insort(arrived[rung], value)
            if sum(other > value for other in arrived[rung]) >= max(len(arrived[rung]) // eta, 1):
                reached[value, name] = rung
                break
    return reached


def _played_with_pauses(drawn: Sequence[_Draw], ends: Mapping[str, Sequence[int]], eta: int) -> dict[_Draw, int]:
    """As `_played`, if trials pause at rungs, and go on once they are among the best ``floor(n / eta)``."""
    reached = dict.fromkeys(drawn, 0)
    for rung in count():
        drawn = [trial for trial in drawn if rung < len(ends[trial[1]]) - 1]
        if not drawn:
            return reached
        arrived: list[_Draw] = []
        going_on: dict[_Draw, None] = {}
        for trial in drawn:
            insort(arrived, trial)
            if quota := len(arrived) // eta:
                going_on |= dict.fromkeys(each for each in (trial, arrived[-quota]) if each >= arrived[-quota])
        drawn = list(going_on) or drawn[:1]
        reached |= dict.fromkeys(drawn, rung + 1)
    return reached


def refused_name(name: str) -> str:
    """Returns a constraint in words."""
    return "values that do not go together" if name == INVALID else name
