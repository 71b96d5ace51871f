"""The samplers: which of Optuna's proposes the next trial, and what it is shown of the study."""

from __future__ import annotations

import heapq
import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.samplers._brute_force import _TreeNode
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config import Categorical, Float, Parameter, SearchSpace
from cdn_tune.config.space import ENUMERATING
from cdn_tune.tuning.study.candidates import Candidates
from cdn_tune.tuning.study.filtered_study import altered, seen, violations
from cdn_tune.tuning.study.ranking import REFUSED, role_of

_MODELLING = ("tpe", "gp", "cmaes")  # random before startup_trials results
_GENERATIONS = ("NSGAIISampler:generation", "NSGAIIISampler:generation")
# TPE takes at most 25 trials for good ones and weighs the others by their age; so it loses little with the oldest of
# many, and a proposal costs the same however many trials there are.
_TPE_BEST, _TPE_LATEST = 50, 150
_GP_TRIALS = 256  # at most, as a Gaussian process costs the cube of their number: the best half and the latest

# Optuna 5 knows a trial's constraints by itself; TPE of Optuna 4 must be given them.
_TPE_CONSTRAINTS: dict[str, Any] = (
    {} if hasattr(FrozenTrial, "constraints") else {"constraints_func": lambda trial: list(violations(trial).values())}
)


def build_sampler(space: SearchSpace, candidates: Candidates | None, asked: int) -> BaseSampler:
    """Builds the sampler of one proposal.

    What it proposes depends on the seed, the number of the proposal and the study alone: a process that goes on with a
    search proposes what the first one would have.

    Args:
        space: Names the sampler, its settings and its seed.
        candidates: Tells complete points from those that a killed process left half sampled.
        asked: Proposals asked before.
    """
    return Proposal(space, candidates, asked)


def is_exhausted(sampler: BaseSampler, study: Study) -> bool:
    """Whether a sampler that goes through all points has proposed all of them; running trials count as proposed."""
    return isinstance(sampler, Proposal) and sampler.is_exhausted(study)


def to_distribution(parameter: Parameter) -> BaseDistribution:
    """Returns Optuna's form of a parameter."""
    if isinstance(parameter, Categorical):
        return CategoricalDistribution(parameter.choices)
    if isinstance(parameter, Float):
        return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    return IntDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


class Proposal(BaseSampler):
    """One of Optuna's samplers, shown the study as it can use it.

    - A sampler sees refused proposals, and trials that failed over a constraint, as what they are: infeasible. TPE has
      them as such, the Gaussian process as trials of the worst value; the others only ever learn from feasible ones.
    - Pruned trials count with the value they had reached, or GP, CMA-ES and NSGA would learn from survivors only.
    - GP, CMA-ES, NSGA and QMC model the parameters that every trial has, CMA-ES the numeric ones; conditional ones and
      those per layer are drawn at random. TPE models each group of parameters that occur together.
    - Random draws depend on the parameter's name, not on what was drawn before.
    - It tells Optuna nothing after a trial: samplers that go through all points would stop a loop that is not theirs.

    Args:
        space: What is searched.
        candidates: Its points.
        asked: Proposals asked before.
    """

    def __init__(self, space: SearchSpace, candidates: Candidates | None, asked: int) -> None:
        config = space.sampler
        self._name, self._candidates = config.name, candidates
        self._entropy = (config.seed, asked)
        self._startup = config.startup_trials if config.name in _MODELLING else 0
        self._distributions = {key: to_distribution(parameter) for key, parameter in space.parameters.items()}
        self._rank = {key: place for place, key in enumerate(space.order)}
        self._common = {
            key: distribution
            for key, distribution in sorted(self._distributions.items())
            if _is_common(space.parameters[key])
            if config.name != "cmaes" or not isinstance(space.parameters[key], Categorical)
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._inner = _build(space, _seed(config.seed, asked))
        self._view: Study | None = None
        self._started: bool | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Returns the parameters that are modelled together."""
        if self._name in ("random", *ENUMERATING) or not self._is_started(study):
            return {}
        if self._name == "tpe":
            return self._inner.infer_relative_search_space(self._seen(study, trial), trial)
        return dict(self._common)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Samples the parameters that are modelled together."""
        if not search_space:
            return {}
        return self._inner.sample_relative(self._seen(study, trial), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Samples one of the other parameters."""
        inner: BaseSampler = RandomSampler(seed=_seed(*self._entropy, zlib.crc32(param_name.encode())))
        if self._name in ENUMERATING or (self._name == "tpe" and self._is_started(study)):
            inner = self._inner
        return inner.sample_independent(self._seen(study, trial), trial, param_name, param_distribution)

    def is_exhausted(self, study: Study) -> bool:
        """Whether all points have been proposed, which only samplers that go through all of them can tell."""
        if not isinstance(self._inner, BruteForceSampler):
            return False
        tree = _TreeNode()
        self._inner._populate_tree(tree, self._points(None, study.get_trials(deepcopy=False)), {})
        return not tree.is_any_expandable(exclude_running=True)

    def _seen(self, study: Study, trial: FrozenTrial) -> Study:
        if self._view is None:
            if self._name in ENUMERATING:
                self._view = seen(study, partial(self._points, trial.number))
            elif self._name == "tpe":
                self._view = seen(study, partial(_for_tpe, len(study.directions) > 1))
            else:
                self._view = seen(study, partial(self._results, study.directions))
        return self._view

    def _is_started(self, study: Study) -> bool:
        """Whether there is enough to model: results, or twice as many refusals where next to nothing is feasible."""
        if self._started is None:
            trials = study.get_trials(deepcopy=False)
            refused = (trial for trial in trials if trial.state.is_finished() and role_of(trial) == REFUSED)
            self._started = _has(self._startup, filter(_has_result, trials)) or _has(2 * self._startup, refused)
        return self._started

    def _results(self, directions: Sequence[StudyDirection], trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Returns running trials and all with a value, those as complete and with the parameters all trials have."""
        usable = [trial for trial in trials if self._has_common(trial)]
        valued = [_as_complete(trial, trial.values) for trial in usable if _has_values(trial)]
        running = [trial for trial in usable if trial.state == TrialState.RUNNING]
        if self._name == "gp" and valued:
            half = _GP_TRIALS // 2
            best = sorted(valued, key=lambda trial: _loss(directions[0], trial.values[0]))[:half]
            chosen = {trial.number: trial for trial in (*best, *valued[-half:])}
            worst = [
                max((trial.values[place] for trial in valued), key=partial(_loss, direction))
                for place, direction in enumerate(directions)
            ]
            refused = [_as_complete(trial, worst) for trial in usable if _is_infeasible(trial)]
            valued = [*chosen.values(), *refused[-half:]]
        return sorted([*valued, *running], key=lambda trial: trial.number)

    def _has_common(self, trial: FrozenTrial) -> bool:
        return all(trial.distributions.get(key) == distribution for key, distribution in self._common.items())

    def _points(self, current: int | None, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Returns trials as paths in the tree of points; half sampled ones left out, all but the current."""
        points = []
        for trial in trials:
            known = {name: self._distributions.get(_key(name)) for name in trial.distributions}
            is_whole = bool(trial.params) and (self._candidates is None or self._candidates.is_complete(trial.params))
            if trial.number != current and not (is_whole and known == trial.distributions):
                continue
            names = sorted(known, key=lambda name: (self._rank.get(_key(name), -1), len(name), name))
            path = {name: trial.distributions[name] for name in names if not trial.distributions[name].single()}
            points.append(altered(trial, distributions=path))
        return points


def _build(space: SearchSpace, seed: int) -> BaseSampler:
    config = space.sampler
    builders: dict[str, Callable[[], BaseSampler]] = {
        "tpe": lambda: TPESampler(
            seed=seed, n_startup_trials=0, multivariate=True, group=True, constant_liar=True, **_TPE_CONSTRAINTS
        ),
        "gp": lambda: GPSampler(seed=seed, n_startup_trials=1),
        "cmaes": lambda: CmaEsSampler(seed=seed, n_startup_trials=0, with_margin=True),
        "nsga2": lambda: NSGAIISampler(seed=seed, population_size=config.population),
        "nsga3": lambda: NSGAIIISampler(seed=seed, population_size=config.population),
        # The seed is that of the sequence's scrambling; where the sequence has got to, the study tells.
        "qmc": lambda: QMCSampler(seed=_seed(config.seed), scramble=True),
        "random": lambda: RandomSampler(seed=seed),
        # Optuna's GridSampler numbers the points by trial, which refused proposals and points to try first upset.
        "grid": lambda: BruteForceSampler(seed=seed),
        "brute_force": lambda: BruteForceSampler(seed=seed),
    }
    return builders[config.name]()


def _seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _is_common(parameter: Parameter) -> bool:
    """Whether every trial has this parameter, with a value to choose."""
    return not (parameter.when or parameter.per_layer or to_distribution(parameter).single())


def _key(name: str) -> str:
    """Returns the dotted key of a sampled value, that of a layer's too."""
    return name.partition("[")[0]


def _for_tpe(is_multi_objective: bool, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the trials with infeasible ones as pruned, as TPE overlooks failed ones.

    Of several objectives, pruned trials lose their intermediate values, which TPE would order by the one direction that
    such a study does not have.
    """
    if not is_multi_objective and len(trials) > _TPE_BEST + _TPE_LATEST:
        best = heapq.nsmallest(_TPE_BEST, filter(_has_result, trials), key=_tpe_rank)
        chosen = {trial.number: trial for trial in (*best, *trials[-_TPE_LATEST:])}
        trials = [chosen[number] for number in sorted(chosen)]
    shown = []
    for trial in map(_with_constraints, trials) if _TPE_CONSTRAINTS else trials:
        if trial.state == TrialState.FAIL and _is_infeasible(trial):
            shown.append(altered(trial, state=TrialState.PRUNED, intermediate_values={}))
        elif is_multi_objective and trial.state == TrialState.PRUNED:
            shown.append(altered(trial, intermediate_values={}))
        else:
            shown.append(trial)
    return shown


def _with_constraints(trial: FrozenTrial) -> FrozenTrial:
    """Returns a trial with its constraints as Optuna 4 keeps them."""
    return altered(trial, system_attrs={**trial.system_attrs, "constraints": list(violations(trial).values())})


def _tpe_rank(trial: FrozenTrial) -> tuple[float, ...]:
    """Returns how TPE orders trials: complete ones by value, then pruned ones, the longer first."""
    if trial.state == TrialState.COMPLETE:
        return 0, 0, -(trial.value or 0.0)
    step, value = max(trial.intermediate_values.items())
    return 1, -step, -value


def _has(count: int, trials: Iterable[FrozenTrial]) -> bool:
    """Whether there are so many; looks no further."""
    return sum(1 for _ in islice(trials, count)) == count


def _has_result(trial: FrozenTrial) -> bool:
    is_pruned = trial.state == TrialState.PRUNED and bool(trial.intermediate_values)
    return role_of(trial) != REFUSED and (is_pruned or trial.state == TrialState.COMPLETE)


def _is_infeasible(trial: FrozenTrial) -> bool:
    return trial.state.is_finished() and any(violation > 0 for violation in violations(trial).values())


def _has_values(trial: FrozenTrial) -> bool:
    finished = trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.values is not None
    return finished and all(map(math.isfinite, trial.values)) and not _is_infeasible(trial)


def _as_complete(trial: FrozenTrial, values: Sequence[float]) -> FrozenTrial:
    """Returns a trial as complete, without constraints, as all that are shown so are feasible or the worst.

    A trial that no sampler proposed, such as a point to try first, belongs to NSGA's first generation.
    """
    attributes: Mapping[str, Any] = {
        key: value for key, value in trial.system_attrs.items() if not key.startswith("constraints")
    }
    first = dict.fromkeys(_GENERATIONS, 0)
    return altered(trial, state=TrialState.COMPLETE, values=list(values), system_attrs={**first, **attributes})


def _loss(direction: StudyDirection, value: float) -> float:
    return -value if direction == StudyDirection.MAXIMIZE else value
