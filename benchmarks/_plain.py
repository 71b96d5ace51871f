"""Plain Ray Tune, simulated: its own `OptunaSearch` and `ASHAScheduler`, called as its controller calls them.

What a user gets who writes no more than these two names: Optuna's default TPE, told each trial's last value;
asynchronous halving on last values; the model of the trial with the best last value, after its last epoch.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cdn_tune.config import Categorical, Float, Parameter, SearchSpace
from cdn_tune.distributed.ray import tune
from cdn_tune.tuning.results.record import quiet
from cdn_tune.tuning.simulation.landscape import DrawnCurves, Landscape
from cdn_tune.tuning.simulation.simulate import Reached

METRIC, EPOCH = "value", "training_iteration"


@dataclass(eq=False)
class _Trial:
    """What Ray Tune's scheduler sees of a trial: its name."""

    number: int
    trial_id: str = field(init=False)
    done: int = 0

    def __post_init__(self) -> None:
        self.trial_id = f"trial-{self.number}"


def domain(parameter: Parameter) -> Any:
    """Returns Ray Tune's form of a parameter."""
    if isinstance(parameter, Categorical):
        return tune.choice(list(parameter.choices))
    if isinstance(parameter, Float):
        return (tune.loguniform if parameter.log else tune.uniform)(parameter.low, parameter.high)
    return tune.randint(parameter.low, parameter.high + 1)


def plain_search(
    space: SearchSpace, landscape: Landscape, seed: int, slots: int, epochs: int
) -> tuple[list[Reached], float]:
    """Simulates a search until its trials have trained so many epochs; returns its course and its model's test."""
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    np.random.seed(seed)  # noqa: NPY002 - Ray's scheduler draws a bracket by it, of one
    curves, length = DrawnCurves(landscape, seed), landscape.curves.header.epochs
    with quiet():
        domains = OptunaSearch.convert_search_space({key: domain(each) for key, each in space.parameters.items()})
        searcher = OptunaSearch(domains, metric=METRIC, mode="max", seed=seed)
        scheduler = ASHAScheduler(time_attr=EPOCH, metric=METRIC, mode="max", max_t=length)
        now, best, spent = 0.0, 0.0, 0
        course: list[Reached] = []
        last: dict[int, float] = {}
        events: list[tuple[float, int]] = []
        trials: list[_Trial] = []
        while spent < epochs:
            while len(events) < slots:
                trial = _Trial(len(trials))
                trials.append(trial)
                curves(trial.number, searcher.suggest(trial.trial_id))
                scheduler.on_trial_add(None, trial)
                found = curves.trials[trial.number]
                heapq.heappush(events, (now + found.start_seconds + found.points[0].seconds, trial.number))
            now, number = heapq.heappop(events)
            trial, points = trials[number], curves.trials[number].points
            trial.done += 1
            spent += 1
            last[number] = next(iter(points[trial.done - 1].val.values()))
            best = max(best, last[number])
            course.append(Reached(spent, now, 0.0, best))
            result = {EPOCH: trial.done, METRIC: last[number]}
            searcher.on_trial_result(trial.trial_id, result)
            stops = scheduler.on_trial_result(None, trial, result) == scheduler.STOP
            if stops or trial.done == length:
                scheduler.on_trial_complete(None, trial, result)
                searcher.on_trial_complete(trial.trial_id, result)
            else:
                heapq.heappush(events, (now + points[trial.done].seconds, number))
    chosen = max(last, key=lambda number: (last[number], -number))
    return course, float(curves.trials[chosen].truth[trials[chosen].done - 1])
