"""The study: the one record of a search. Ray asks it for trials and tells it what became of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config import Categorical, Float, Parameter, SearchSpace

DATABASE = "study.db"
_ENQUEUED = "start_with_enqueued"


class Study:
    """An Optuna study in a storage, seen as a list of numbered trials.

    The objective of a trial is its best epoch's val metric so far; that is also its intermediate value at each
    epoch, so pruners compare what trials are worth and a pruned trial keeps the value it had reached.

    Args:
        storage: Optuna storage URL, e.g. of :func:`sqlite_url`.
        space: What is searched.
    """

    def __init__(self, storage: str, space: SearchSpace) -> None:
        self.halted: str | None = None  # why no further trial should start
        self._url = storage
        self._space = space
        self._storage: BaseStorage = RDBStorage(storage)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(
                study_name=space.name,
                storage=self._storage,
                sampler=build_sampler(space),
                pruner=build_pruner(space),
                direction="maximize",
                load_if_exists=True,
            )
        self._distributions = {key: to_distribution(parameter) for key, parameter in space.parameters.items()}
        self._ids: dict[int, int] = {trial.number: trial._trial_id for trial in self.trials()}
        self._left = [trial.number for trial in self.trials() if trial.state == TrialState.RUNNING]
        if not self._study.user_attrs.get(_ENQUEUED):
            for point in space.start_with or ():
                self._study.enqueue_trial(dict(point), skip_if_exists=True)
            self._study.set_user_attr(_ENQUEUED, True)

    def trials(self) -> list[FrozenTrial]:
        """Returns every trial that was ever asked for, by number."""
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]

    def trial(self, number: int) -> FrozenTrial:
        """Returns one trial as it is recorded now."""
        return self._storage.get_trial(self._ids[number])

    def unfinished(self) -> list[int]:
        """Returns the numbers of trials that are recorded as running."""
        return [trial.number for trial in self.trials() if trial.state == TrialState.RUNNING]

    def next(self, limit: int) -> int | None:
        """Returns the next trial to run: first those that an earlier process left unfinished, then new ones.

        Args:
            limit: Trials in all.

        Returns:
            Its number, or None when there are `limit` trials.
        """
        if self._left:
            return self._left.pop(0)
        if len(self.trials()) >= limit:
            return None
        self._study.sampler = build_sampler(self._space, asked=len(self.trials()))
        trial = self._study.ask(self._distributions)
        self._ids[trial.number] = trial._trial_id
        return trial.number

    def parameters(self, number: int) -> dict[str, Any]:
        """Returns a trial's sampled values by dotted key."""
        return self.trial(number).params

    def report(self, number: int, epoch: int, value: float, note: dict[str, Any]) -> bool:
        """Records an epoch.

        Args:
            number: The trial.
            epoch: The epoch, from 1. An epoch already on record (a trial taken up again) is kept as it was.
            value: The trial's best val metric so far.
            note: User attributes to set, e.g. the best epoch.

        Returns:
            Whether the trial should be pruned.
        """
        if self.trial(number).state != TrialState.RUNNING:
            return False
        for key, content in note.items():
            self._storage.set_trial_user_attr(self._ids[number], key, content)
        if epoch in self.trial(number).intermediate_values:
            return False
        self._storage.set_trial_intermediate_value(self._ids[number], epoch, value)
        return self._study.pruner.prune(self._study, self.trial(number))

    def complete(self, number: int) -> None:
        """Records that a trial ran to its end; one that never reported a value has failed."""
        value = self._reached(number)
        last = max(self.trial(number).intermediate_values, default=0)
        epochs = self.trial(number).user_attrs.get("epochs", last)
        if value is None:
            self.fail(number, "ended without reporting a val metric")
        elif last < epochs:
            self.fail(number, f"ended after epoch {last} of {epochs} without a reason")
        elif self.trial(number).state == TrialState.RUNNING:
            self._study.tell(number, value)

    def prune(self, number: int, reason: str) -> None:
        """Records that a trial was stopped early, with the value it had reached."""
        if self.trial(number).state == TrialState.RUNNING:
            self._storage.set_trial_user_attr(self._ids[number], "reason", reason)
            self._study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """Records that a trial failed, and why."""
        if self.trial(number).state == TrialState.RUNNING:
            self._storage.set_trial_user_attr(self._ids[number], "reason", reason)
            self._study.tell(number, state=TrialState.FAIL)

    def _reached(self, number: int) -> float | None:
        values = [value for value in self.trial(number).intermediate_values.values() if math.isfinite(value)]
        return max(values, default=None)

    def __getstate__(self) -> dict[str, Any]:
        return {"storage": self._url, "space": self._space}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["storage"], state["space"])  # type: ignore[misc]


def sqlite_url(folder: Path) -> str:
    """Returns the storage URL of a run folder's own study."""
    return f"sqlite:///{folder / DATABASE}"


def to_distribution(parameter: Parameter) -> BaseDistribution:
    """Returns Optuna's form of a parameter."""
    if isinstance(parameter, Categorical):
        return CategoricalDistribution(parameter.choices)
    if isinstance(parameter, Float):
        return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    return IntDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def build_sampler(space: SearchSpace, asked: int = 0) -> BaseSampler:
    """Builds the sampler that proposes a trial.

    Args:
        space: Names the sampler and its seed.
        asked: Trials asked before; with the seed it determines the draws, so that a process that goes on with a search
            proposes what the first one would have, and nothing twice.
    """
    config = space.sampler
    seed = int(np.random.SeedSequence([config.seed, asked]).generate_state(1)[0])
    if config.name == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(
            seed=seed, n_startup_trials=config.startup_trials, multivariate=True, group=True, constant_liar=True
        )


def build_pruner(space: SearchSpace) -> BasePruner:
    """Builds the pruner of a search space."""
    config = space.early_stopping
    builders: dict[str, Callable[[], BasePruner]] = {
        "asha": lambda: SuccessiveHalvingPruner(
            min_resource=config.min_resource, reduction_factor=config.reduction_factor
        ),
        "median": lambda: MedianPruner(n_startup_trials=config.startup_trials, n_warmup_steps=config.min_resource - 1),
        "none": NopPruner,
    }
    return builders[config.name]()
