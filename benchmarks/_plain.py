"""Plain Ray Tune, simulated and for real: its own `OptunaSearch` and `ASHAScheduler`.

Simulated, they are called as Ray Tune's controller calls them. What a user gets who writes no more than these names:
Optuna's default TPE, told each trial's last value; asynchronous halving on last values; the model of the trial with the
best last value, after its last epoch.
"""

from __future__ import annotations

import heapq
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from cdn_tune.config import Categorical, Experiment, Float, Parameter, SearchSpace, override
from cdn_tune.data.dataset import load_splits
from cdn_tune.distributed.ray import tune
from cdn_tune.training.evaluate.evaluation import evaluate_split
from cdn_tune.training.loop import train
from cdn_tune.training.reports import EpochReport
from cdn_tune.training.runs.checkpoint import LAST, build_model, read_checkpoint
from cdn_tune.training.step.threads import torch_threads
from cdn_tune.training.train_trial import open_data
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


@dataclass
class _Spent(tune.Stopper):  # type: ignore[misc]  # Ray ships no types
    """Ends a search once its trials have trained so many epochs together."""

    left: int

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        self.left -= 1
        return False

    def stop_all(self) -> bool:
        return self.left <= 0


def plain_real(space: SearchSpace, base: Experiment, seed: int, folder: Path, epochs: int) -> tuple[Experiment, Path]:
    """Searches with plain Ray Tune until its trials have trained so many epochs; returns the chosen model.

    Its trainings are ours, with the data opened once a process; after every epoch they report and save the model.
    """
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_train, plain=base.plain()), {"CPU": 1}),
        param_space={key: domain(each) for key, each in space.parameters.items()},
        tune_config=tune.TuneConfig(
            metric=METRIC, mode="max", num_samples=epochs, search_alg=OptunaSearch(seed=seed),
            scheduler=ASHAScheduler(max_t=base.train.epochs),
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder), stop=_Spent(epochs), verbose=0),
    )  # fmt: skip
    # Ray's default, which ours is not: one trial waits at a time, proposed when there is nearly a place for it.
    with quiet(), mock.patch.dict(os.environ, {"TUNE_MAX_PENDING_TRIALS_PG": "auto"}):
        best = tuner.fit().get_best_result()
    return override(base.plain(), best.config, "plain"), Path(best.checkpoint.path) / LAST.name


def tested(chosen: tuple[Experiment, Path]) -> float:
    """Returns the test metric of a chosen model."""
    experiment, path = chosen
    model = build_model(experiment)
    model.load_state_dict(read_checkpoint(path)["model"])
    test = load_splits(experiment.data, ("test",))["test"]
    return evaluate_split(model, test, experiment.eval).metrics[experiment.eval.metric]


def _train(config: dict[str, Any], plain: dict[str, Any]) -> None:
    """A trial of plain Ray Tune."""
    experiment = override(plain, config, "trial")
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as saved, torch_threads(1):

        def report(done: EpochReport) -> None:
            shutil.copy(Path(work) / LAST, saved)
            value = done.val[experiment.eval.metric]
            tune.report({METRIC: value}, checkpoint=tune.Checkpoint.from_directory(saved))

        train(experiment, Path(work), report, open_data(experiment.data), planted=True)
