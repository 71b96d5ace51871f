"""The samplers: how each is built, and which trials it sees. `config.tables.SAMPLERS` lists them."""

import heapq
import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config import Categorical, Float, Parameter, SamplerConfig, SearchSpace
from cdn_tune.config.tables import resolve
from cdn_tune.tuning.study.candidates import Candidates
from cdn_tune.tuning.study.filtered_study import altered, seen, violations
from cdn_tune.tuning.study.ranking import CONFIRMATION, REFUSED, as_ended, role_of

_GENERATIONS = ("NSGAIISampler:generation", "NSGAIIISampler:generation")
# TPE takes at most 25 trials for good ones and weighs the others by their age; so it loses little with the oldest of
# many, and a proposal costs the same however many trials there are.
_TPE_BEST, _TPE_LATEST = 50, 150
_GP_TRIALS = 256  # at most, as a Gaussian process costs the cube of their number: the best half and the latest

# Optuna 5 reads a trial's constraints by itself; TPE of Optuna 4 must be given them.
_TPE_CONSTRAINTS: dict[str, Any] = (
    {} if hasattr(FrozenTrial, "constraints") else {"constraints_func": lambda trial: list(violations(trial).values())}
)

Common = Mapping[str, BaseDistribution]  # of the parameters that every trial has
Best = Callable[[int], list[FrozenTrial]]  # from a number to so many trials, the best first
Tree = dict[str, Any]  # from a value to the tree of what was proposed with it; a complete point has an empty one


def build_sampler(space: SearchSpace, candidates: Candidates, proposed: int, best: Best | None = None) -> BaseSampler:
    """Builds the sampler of one proposal, given the number of proposals before it.

    What it proposes depends on the seed, that number and the study alone: a process that goes on with a search proposes
    what the first one would have.

    Where the sampler's row has an order of trials, `best` returns the first of them; all are gone through if None.
    """
    if space.sampler.row.enumerates:
        return Enumeration(candidates, space.sampler.seed, proposed)
    return Proposal(space, proposed, best)


def is_exhausted(sampler: BaseSampler, study: Study) -> bool:
    """Returns whether a sampler that goes through all points has proposed all; running trials count as proposed."""
    return isinstance(sampler, Enumeration) and sampler.is_exhausted(study)


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
    - Confirmations are not shown.
    - Pruned and paused trials count with the value they had reached, or GP, CMA-ES and NSGA would learn from survivors.
    - GP, CMA-ES, NSGA and QMC model the parameters that every trial has, CMA-ES the numeric ones; conditional ones and
      those per layer are drawn at random. TPE models each group of parameters that occur together.
    - Random draws depend on the parameter's name, not on what was drawn before.
    """

    def __init__(self, space: SearchSpace, proposed: int, best: Best | None = None) -> None:
        config = space.sampler
        self._row = config.row
        self._entropy = (config.seed, proposed)
        self._startup = config.startup_trials if self._row.startup else 0
        self._common = {
            key: to_distribution(parameter)
            for key, parameter in sorted(space.parameters.items())
            if _is_common(parameter)
            if self._row.models != "numeric" or not isinstance(parameter, Categorical)
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._inner: BaseSampler = resolve(self._row.build)(config, _seed(config.seed, proposed))
        self._best = {} if best is None else {"best": best}
        self._view: Study | None = None
        self._started: bool | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Returns the parameters that are modelled together."""
        if self._row.models == "none" or not self._is_started(study):
            return {}
        if self._row.models == "own":
            return self._inner.infer_relative_search_space(self._seen(study), trial)
        return dict(self._common)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Samples the parameters that are modelled together."""
        return self._inner.sample_relative(self._seen(study), trial, search_space) if search_space else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Samples one of the other parameters."""
        inner: BaseSampler = RandomSampler(seed=_seed(*self._entropy, zlib.crc32(param_name.encode())))
        if self._row.models == "own" and self._is_started(study):
            inner = self._inner
        return inner.sample_independent(self._seen(study), trial, param_name, param_distribution)

    def _seen(self, study: Study) -> Study:
        if self._view is None:
            known: dict[str, Any] = {"directions": study.directions, "common": self._common, **self._best}
            self._view = seen(study, partial(resolve(self._row.show), **known))
        return self._view

    def _is_started(self, study: Study) -> bool:
        """Whether there is enough to model: results, or twice as many refusals where next to nothing is feasible."""
        if self._started is None:
            trials = study.get_trials(deepcopy=False)
            refused = (trial for trial in _proposed(trials) if trial.state.is_finished() and role_of(trial) == REFUSED)
            results = filter(_has_result, map(as_ended, _proposed(trials)))
            self._started = _has(self._startup, results) or _has(2 * self._startup, refused)
        return self._started


class Enumeration(BaseSampler):
    """Proposes points that no trial has, whatever its state; conditions and values per layer are gone through too.

    A point that a killed process left half sampled counts as not proposed.
    """

    def __init__(self, candidates: Candidates, seed: int, proposed: int) -> None:
        self._candidates, self._entropy = candidates, (seed, proposed)
        self._proposed: tuple[int, Tree] | None = None  # number of the trial being sampled, what the others have

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """Returns no parameters: each is sampled given those before it."""
        return {}

    def sample_relative(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        """Returns nothing, as no parameters are sampled together."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,  # noqa: ARG002
    ) -> Any:
        """Returns a value with which some point is left; any, if none is."""
        if self._proposed is None or self._proposed[0] != trial.number:
            others = [each for each in study.get_trials(deepcopy=False) if each.number != trial.number]
            self._proposed = trial.number, self._tree(others)
        node: Tree | None = self._proposed[1]
        before: dict[str, Any] = {}
        while (name := self._candidates.next_name(before)) != param_name and name is not None:
            before[name] = trial.params[name]
            node = None if node is None else node.get(repr(before[name]))
        values = self._values(param_name)
        left = [
            value
            for value in values
            if node is None or self._has_left(node.get(repr(value)), {**before, param_name: value})
        ]
        draw = np.random.default_rng([*self._entropy, zlib.crc32(param_name.encode())])
        return (left or values)[int(draw.integers(len(left or values)))]

    def is_exhausted(self, study: Study) -> bool:
        """Returns whether all points have been proposed; running trials count as proposed."""
        return not self._has_left(self._tree(study.get_trials(deepcopy=False)), {})

    def _tree(self, trials: list[FrozenTrial]) -> Tree:
        """Returns the complete points of some trials."""
        root: Tree = {}
        for trial in trials:
            path: dict[str, Any] = {}
            while (name := self._candidates.next_name(path)) is not None and name in trial.params:
                path[name] = trial.params[name]
            if name is not None or path.keys() != trial.params.keys():
                continue
            node = root
            for value in path.values():
                node = node.setdefault(repr(value), {})
        return root

    def _has_left(self, node: Tree | None, params: Mapping[str, Any]) -> bool:
        """Returns whether some point that begins with `params`, below `node` of the tree, was not proposed."""
        if node is None:
            return True
        name = self._candidates.next_name(params)
        if name is None:
            return False
        values = self._values(name)
        return len(node) < len(values) or any(
            self._has_left(node.get(repr(value)), {**params, name: value}) for value in values
        )

    def _values(self, name: str) -> list[Any]:
        values = self._candidates.space.parameters[name.partition("[")[0]].values
        if values is None:
            raise ValueError(f"{name} has no end; an enumeration needs finite parameters")
        return list(values)


def build_tpe(config: SamplerConfig, seed: int) -> BaseSampler:  # noqa: ARG001
    """Builds a multivariate tree-structured Parzen estimator."""
    return TPESampler(
        seed=seed, n_startup_trials=0, multivariate=True, group=True, constant_liar=True, **_TPE_CONSTRAINTS
    )


def build_gp(config: SamplerConfig, seed: int) -> BaseSampler:  # noqa: ARG001
    """Builds a Gaussian process."""
    return GPSampler(seed=seed, n_startup_trials=1)


def build_cmaes(config: SamplerConfig, seed: int) -> BaseSampler:  # noqa: ARG001
    """Builds CMA-ES."""
    return CmaEsSampler(seed=seed, n_startup_trials=0, with_margin=True)


def build_nsga2(config: SamplerConfig, seed: int) -> BaseSampler:
    """Builds NSGA-II."""
    return NSGAIISampler(seed=seed, population_size=config.population)


def build_nsga3(config: SamplerConfig, seed: int) -> BaseSampler:
    """Builds NSGA-III."""
    return NSGAIIISampler(seed=seed, population_size=config.population)


def build_qmc(config: SamplerConfig, seed: int) -> BaseSampler:  # noqa: ARG001
    """Builds a Sobol sequence, scrambled by the search's seed; how far it has got follows from the study."""
    return QMCSampler(seed=_seed(config.seed), scramble=True)


def build_random(config: SamplerConfig, seed: int) -> BaseSampler:  # noqa: ARG001
    """Builds random sampling."""
    return RandomSampler(seed=seed)


def with_values(
    trials: list[FrozenTrial],
    directions: Sequence[StudyDirection],  # noqa: ARG001
    common: Common,
) -> list[FrozenTrial]:
    """Returns running trials and all with a value, those as complete, that have the common parameters."""
    usable = [trial for trial in map(as_ended, _proposed(trials)) if _has_common(trial, common)]
    return [
        _as_complete(trial, trial.values) if _has_values(trial) else trial
        for trial in usable
        if _has_values(trial) or trial.state == TrialState.RUNNING
    ]


def for_gp(trials: list[FrozenTrial], directions: Sequence[StudyDirection], common: Common) -> list[FrozenTrial]:
    """Returns the best and the latest trials `with_values`, and the latest infeasible ones as of the worst value."""
    trials = list(map(as_ended, _proposed(trials)))
    shown = with_values(trials, directions, common)
    valued = [trial for trial in shown if trial.state == TrialState.COMPLETE]
    if not valued:
        return shown
    half = _GP_TRIALS // 2
    best = sorted(valued, key=lambda trial: _loss(directions[0], trial.values[0]))[:half]
    worst = [
        max((trial.values[place] for trial in valued), key=partial(_loss, direction))
        for place, direction in enumerate(directions)
    ]
    refused = [_as_complete(each, worst) for each in trials if _has_common(each, common) and _is_infeasible(each)]
    running = [trial for trial in shown if trial.state == TrialState.RUNNING]
    chosen = {trial.number: trial for trial in (*best, *valued[-half:], *refused[-half:], *running)}
    return [chosen[number] for number in sorted(chosen)]


def _proposed(trials: Iterable[FrozenTrial]) -> Iterator[FrozenTrial]:
    """Yields the trials without confirmations: a point that was chosen for its value would count several times."""
    return (trial for trial in trials if role_of(trial) != CONFIRMATION)


def _seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _is_common(parameter: Parameter) -> bool:
    """Whether every trial has this parameter, with a value to choose."""
    return not (parameter.when or parameter.per_layer or to_distribution(parameter).single())


def _has_common(trial: FrozenTrial, common: Common) -> bool:
    return all(trial.distributions.get(key) == distribution for key, distribution in common.items())


def for_tpe(
    trials: list[FrozenTrial],
    directions: Sequence[StudyDirection],
    common: Common,  # noqa: ARG001
    best: Best | None = None,
) -> list[FrozenTrial]:
    """Returns the best and the latest trials, infeasible ones as pruned, as TPE overlooks failed ones.

    Of several objectives all trials; pruned ones lose their intermediate values, which TPE would order by the one
    direction that such a study does not have.
    """
    several = len(directions) > 1
    if not several and _has(_TPE_BEST + _TPE_LATEST + 1, _proposed(trials)):
        first = _best_for_tpe(trials) if best is None else best(_TPE_BEST)
        latest = islice(_proposed(reversed(trials)), _TPE_LATEST)
        chosen = {trial.number: trial for trial in (*first, *latest)}
        trials = [chosen[number] for number in sorted(chosen)]
    shown = []
    ended = map(as_ended, _proposed(trials))
    for trial in map(_with_constraints, ended) if _TPE_CONSTRAINTS else ended:
        if trial.state == TrialState.FAIL and _is_infeasible(trial):
            shown.append(altered(trial, state=TrialState.PRUNED, intermediate_values={}))
        elif several and trial.state == TrialState.PRUNED:
            shown.append(altered(trial, intermediate_values={}))
        else:
            shown.append(trial)
    return shown


def _with_constraints(trial: FrozenTrial) -> FrozenTrial:
    """Returns a trial with its constraints as Optuna 4 keeps them."""
    return altered(trial, system_attrs={**trial.system_attrs, "constraints": list(violations(trial).values())})


def _best_for_tpe(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    placed = [(place, trial) for trial in trials if (place := tpe_place(trial)) is not None]
    return [trial for _, trial in heapq.nsmallest(_TPE_BEST, placed, key=lambda pair: pair[0])]


def tpe_place(trial: FrozenTrial) -> tuple[float, ...] | None:
    """Returns a trial's place in TPE's order: complete ones by value, then pruned ones, the longer first.

    One without a result has none.
    """
    trial = as_ended(trial)
    if role_of(trial) == CONFIRMATION or not _has_result(trial):
        return None
    if trial.state == TrialState.COMPLETE:
        return 0, 0, -(trial.value or 0.0)
    step, value = max(trial.intermediate_values.items())
    return 1, -step, math.inf if math.isnan(value) else -value


def _has(count: int, trials: Iterable[FrozenTrial]) -> bool:
    """Whether there are at least `count`."""
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
