"""Simulates searches: the real study, sampler, stopping rule, budget and keeping, over predicted learning curves."""

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdn_tune.config import Experiment, SearchSpace, override
from cdn_tune.config.keys import get_keys
from cdn_tune.config.space import MEASURED_COSTS
from cdn_tune.data.files import Progress
from cdn_tune.errors import ConfigError
from cdn_tune.training.memory.estimate import checkpoint_bytes
from cdn_tune.tuning.checkpoints.retention import Retention
from cdn_tune.tuning.driver import Driver
from cdn_tune.tuning.engine.door import Decision, TrialReport
from cdn_tune.tuning.engine.virtual.engine import VirtualEngine, World
from cdn_tune.tuning.engine.virtual.files import Flag, MemoryFiles
from cdn_tune.tuning.results.leaderboard import HOUR
from cdn_tune.tuning.results.record import quiet
from cdn_tune.tuning.simulation.curves import Curves
from cdn_tune.tuning.simulation.landscape import DrawnCurves, Landscape, Predicted
from cdn_tune.tuning.storage.check import MEMORY
from cdn_tune.tuning.study.candidates import GB
from cdn_tune.tuning.study.ranking import models, value_of
from cdn_tune.tuning.study.study import Study

QUANTILES = (0.1, 0.5, 0.9)
_STEPS = 12  # budgets at which the best so far is listed


@dataclass(frozen=True)
class Reached:
    """A search just after a report.

    Attributes:
        epochs: Trained by all trials so far.
        seconds: Since its start.
        gpu_hours: Occupied by all trials so far.
        best: The best val metric so far.
    """

    epochs: int
    seconds: float
    gpu_hours: float
    best: float


@dataclass(frozen=True)
class Simulated:
    """One simulated search.

    Attributes:
        course: After every report.
        decisions: What was reported and decided, in order: trial, epoch, best value so far, whether it was stopped.
        seconds: From its start to its end.
        busy_seconds: Slot time taken by trials.
        slot_seconds: Slot time there was.
        trials: How many were started.
        stopped: How many were stopped early, by the epoch after which.
        val: Val metric of the model that it chooses: of the best trial that has ended (of a confirmed one, of its best
            confirmation), else of the best under way.
        truth: What that is worth, see `landscape.Predicted`.
        predicted: What was predicted for each trial, by number.
        ended_by: The budget that ended it, if one did.
    """

    course: list[Reached]
    decisions: list[tuple[int, int, float, bool]]
    seconds: float
    busy_seconds: float
    slot_seconds: float
    trials: int
    stopped: Counter[int]
    val: float
    truth: float
    predicted: dict[int, Predicted]
    ended_by: str | None


class _Watch:
    """A driver whose answers to reports are recorded."""

    def __init__(self, driver: Driver, world: World) -> None:
        self._driver, self._world = driver, world
        resources = driver.space.resources
        self._gpus = resources.workers * resources.gpus_per_worker
        self.course: list[Reached] = []
        self.decisions: list[tuple[int, int, float, bool]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def reported(self, number: int, report: TrialReport) -> Decision:
        """Passes an epoch on to the driver; returns its decision."""
        decision = self._driver.reported(number, report)
        value = report.epoch.best_value
        best = max(value, self.course[-1].best) if self.course else value
        world = self._world
        hours = self._gpus * world.busy_seconds / HOUR
        self.course.append(Reached(len(self.course) + 1, world.clock.now, hours, best))
        self.decisions.append((number, report.epoch.epoch, value, decision is Decision.STOP))
        return decision


def checked(space: SearchSpace, base: Experiment, curves: Curves) -> tuple[Experiment, list[str]]:
    """Checks that curves can stand for a search's trainings; returns the base experiment of their length, and notes.

    Raises:
        ConfigError: If they lack a metric, are shorter than the stopping rule needs, or hold nothing it compares.
    """
    source, rule, epochs = curves.source, space.early_stopping, curves.header.epochs
    wanted = [base.eval.metric, *(each.metric for each in space.objectives if each.metric not in MEASURED_COSTS)]
    if missing := [name for name in wanted if name not in curves.metrics]:
        held = ", ".join(curves.metrics)
        raise ConfigError(f"{source}: its curves lack {', '.join(missing)}; choose among {held}, e.g. eval.metric=NAME")
    if rule.row.compares == "queries":
        raise ConfigError(
            f"early_stopping.name={rule.name}: compares queries, which recorded curves do not hold; choose another rule"
        )
    steps = max(record.steps for record in curves.records)
    longest = {"epoch": epochs, "step": epochs * steps}.get(rule.unit)
    if rule.name != "none" and longest is not None and rule.least > longest:
        raise ConfigError(
            f"{source}: its curves are of {longest} {rule.unit}s, and early_stopping.min_resource={rule.min_resource} "
            "needs more; lower it, or record longer ones"
        )
    notes = []
    known = curves.header.parameters
    if unknown := [key for key in space.parameters if key not in known]:
        notes.append(f"the curves do not know {', '.join(unknown)}: here nothing depends on what a trial has there")
    if fixed := [key for key in known if key not in space.parameters]:
        values = get_keys(base.plain(), fixed)
        shown = ", ".join(f"{key}={values.get(key)}" for key in fixed)
        notes.append(f"not searched, as in the base experiment: {shown}")
    if base.train.epochs != epochs:
        notes.append(f"trials train {epochs} epochs, as the curves do, not train.epochs={base.train.epochs}")
        base = override(base.plain(), {"train.epochs": epochs}, source)
    return base, notes


def landscape_of(space: SearchSpace, base: Experiment, curves: Curves) -> Landscape:
    """Returns what predicts the learning curves of a space's trials, all of whose metrics the curves have."""
    metrics = [name for name in base.eval.metrics if name in curves.metrics and name != base.eval.metric]
    fixed = get_keys(base.plain(), [key for key in curves.header.parameters if key not in space.parameters])
    return Landscape(curves, [base.eval.metric, *metrics], fixed)


def simulate(
    space: SearchSpace,
    base: Experiment,
    landscape: Landscape,
    seed: int,
    slots: int,
    trials: int | None = None,
    epochs: int | None = None,
) -> Simulated:
    """Simulates one search.

    Args:
        space: What is searched; its sampler's seed and `seed` are added.
        base: The base experiment, of the curves' length.
        landscape: Predicts learning curves.
        seed: Of the sampler, and of seeds and noise of the curves.
        slots: Trials that run at once.
        trials: In all; the space's if None.
        epochs: Ends the search once its trials have trained so many together.
    """
    sampler = space.sampler.model_copy(update={"seed": (space.sampler.seed + seed) % 2**32})
    space = space.model_copy(update={"sampler": sampler})
    world = World(nodes={0: slots})
    curves = DrawnCurves(landscape, seed)
    with quiet():
        longest = base.train.epochs * landscape.curves.records[0].steps
        study = Study(MEMORY, space, base, longest=longest, clock=world.clock)
        study.begin()
        size = 0 if space.disk_budget_gb is None else checkpoint_bytes(base)
        budget = None if space.disk_budget_gb is None else space.disk_budget_gb * GB
        directions = study.directions if len(study.directions) > 1 else ()
        retention = Retention(MemoryFiles(world, size), space.keep, budget, directions)

        def stop() -> bool:
            return epochs is not None and len(watch.course) >= epochs

        limit = trials or space.trials
        driver = Driver(study, limit, retention, world.clock, Flag(), stop, size)
        watch = _Watch(driver, world)
        driver.start()
        VirtualEngine(curves, world, curves.start_seconds).run(watch)
        driver.close()
    valued = [trial for trial in study.entries() if trial.intermediate_values]
    if not valued:
        raise ConfigError(f"seed {seed}: no trial of {limit} reached its first epoch; raise the trials or the budget")
    finished = models(valued)
    chosen = finished[0] if finished else max(valued, key=lambda trial: value_of(trial) or 0.0)
    return Simulated(
        watch.course,
        watch.decisions,
        world.clock.now,
        world.busy_seconds,
        world.slot_seconds,
        len(study.trials()),
        Counter(epoch for _, epoch, _, stopped in watch.decisions if stopped),
        value_of(chosen) or 0.0,
        float(curves.trials[chosen.number].truth[chosen.user_attrs["best_epoch"] - 1]),
        curves.trials,
        driver.ended_by,
    )


def simulate_many(
    space: SearchSpace,
    base: Experiment,
    landscape: Landscape,
    seeds: int,
    slots: int,
    trials: int | None = None,
    epochs: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[Simulated], float]:
    """Simulates a search under several seeds; returns them and the reports that were decided on a second."""
    began, found = time.perf_counter(), []
    for seed in range(seeds):
        found.append(simulate(space, base, landscape, seed, slots, trials, epochs))
        if progress is not None:
            progress(seed + 1, seeds)
    return found, sum(len(each.course) for each in found) / (time.perf_counter() - began)


def best_by(searches: Sequence[Simulated], what: str) -> list[dict[str, float]]:
    """Returns the best val metric so far within budgets up to that of the longest search: a row of quantiles each.

    Args:
        searches: Over which the quantiles are; one that ended before counts with what it had reached.
        what: ``epochs``, ``seconds`` or ``gpu_hours``.
    """
    most = max(getattr(search.course[-1], what) for search in searches)
    rows = []
    for step in range(1, _STEPS + 1):
        spent = most * step / _STEPS if what != "epochs" else max(1, round(most * step / _STEPS))
        best = [_best_within(search, what, spent) for search in searches]
        rows.append({what: spent, **quantiles(best)})
    return rows


def quantiles(values: Iterable[float]) -> dict[str, float]:
    """Returns the quantiles of some values, by name: ``q10``, ``q50``, ``q90``."""
    found = np.quantile(list(values), QUANTILES)
    return {f"q{share * 100:.0f}": float(value) for share, value in zip(QUANTILES, found, strict=True)}


def summary(
    space: SearchSpace,
    base: Experiment,
    landscape: Landscape,
    slots: int,
    searches: Sequence[Simulated],
    reports_per_second: float,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Returns what simulated searches show, as plain values.

    `test_regret` and `val_minus_test` are means over the seeds: by how much the chosen model is worse than the best
    recorded one, and by how much its val metric promises too much. Where test is not known, both are of the val metric
    free of noise.
    """
    curves, regrets = landscape.curves, [landscape.best_truth - search.truth for search in searches]
    promised = [search.val - search.truth for search in searches]
    apart = [each.distance for search in searches for each in search.predicted.values()]
    stopped: Counter[int] = sum((search.stopped for search in searches), Counter())
    return {
        "space": space.name,
        "metric": base.eval.metric,
        "sampler": space.sampler.name,
        "early_stopping": space.early_stopping.name,
        "slots": slots,
        "seeds": len(searches),
        "curves": {
            "source": curves.source,
            "about": curves.header.about,
            "predicted_from_run": curves.is_run,
            "planted": curves.header.planted,
            "configurations": landscape.configurations,
            "epochs": curves.header.epochs,
            "rank_correlation": _finite(landscape.rank_correlation()),
            "has_test": landscape.has_test,
            "nearest_distance": {"median": statistics.median(apart), "most": max(apart)},
        },
        "notes": list(notes),
        "trials": statistics.mean(search.trials for search in searches),
        "epochs": statistics.mean(len(search.course) for search in searches),
        "seconds": statistics.mean(search.seconds for search in searches),
        "slots_busy": sum(each.busy_seconds for each in searches) / sum(each.slot_seconds for each in searches),
        "reports_per_second": reports_per_second,
        "chosen_val": statistics.mean(search.val for search in searches),
        "chosen_test": statistics.mean(search.truth for search in searches),
        "best_test": landscape.best_truth,
        "test_regret": statistics.mean(regrets),
        "test_regret_quantiles": quantiles(regrets),
        "val_minus_test": statistics.mean(promised),
        "val_minus_test_quantiles": quantiles(promised),
        "stopped_after_epoch": {str(epoch): stopped[epoch] / len(searches) for epoch in sorted(stopped)},
        "ended_by_budget": sum(search.ended_by is not None for search in searches) / len(searches),
        "best_by_epochs": best_by(searches, "epochs"),
        "best_by_seconds": best_by(searches, "seconds"),
        "best_by_gpu_hours": best_by(searches, "gpu_hours") if searches[0].course[-1].gpu_hours else [],
    }


def _best_within(search: Simulated, what: str, spent: float) -> float:
    """Returns the best value within a budget; before the first report, the worst there is."""
    reached = 0.0
    for each in search.course:
        if getattr(each, what) > spent * (1 + 1e-9):
            break
        reached = each.best
    return reached


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
