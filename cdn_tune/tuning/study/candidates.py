"""The points of a search space as experiments: their constraints and their costs, before anything is started."""

from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import BaseTrial

from cdn_tune.config import Categorical, Experiment, Float, Parameter, SearchSpace, override
from cdn_tune.config.check import FAMILY, family_at, resolve_name, searched_families
from cdn_tune.config.expression import COSTS
from cdn_tune.config.keys import get_key, get_keys
from cdn_tune.config.load import of_family
from cdn_tune.errors import ConfigError
from cdn_tune.model.families import layers_key

GB = 1e9
INVALID = "experiment"  # the constraint that sampled values make an experiment at all


@dataclass(frozen=True)
class Verdict:
    """Whether a trial may start."""

    violations: Mapping[str, float] = field(default_factory=dict)  # by constraint; at most 0 where it holds
    reason: str | None = None  # why it may not start; None if it may


class Candidates:
    """The points of a search space, as experiments.

    Args:
        space: What is searched.
        base: The base experiment under all fixed overrides.
    """

    def __init__(self, space: SearchSpace, base: Experiment) -> None:
        self.space, self.base = space, base
        self._plain = base.plain()
        self._latest: tuple[str, Experiment] | None = None
        self._names = {name: resolve_name(name) for expression in space.expressions for name in expression.names}

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Samples a point, parameter by parameter where their conditions hold; returns values by Optuna's names."""
        params: dict[str, Any] = {}
        for key in self.space.order:
            for name in self.names(key, params):
                params[name] = _suggest(trial, name, self.space.parameters[key])
        return params

    def names(self, key: str, params: Mapping[str, Any]) -> list[str]:
        """Returns Optuna's names of a parameter, given the values sampled before it: one, or one for every layer.

        There is none where its conditions do not hold.
        """
        parameter = self.space.parameters[key]
        if not self._applies(parameter, params):
            return []
        if not parameter.per_layer:
            return [key]
        return [f"{key}[{layer}]" for layer in range(self._value(layers_key(key), params))]

    def next_name(self, params: Mapping[str, Any]) -> str | None:
        """Returns Optuna's name of the value that is sampled after these; None if the point is complete."""
        names = (name for key in self.space.order for name in self.names(key, params))
        return next((name for name in names if name not in params), None)

    def is_complete(self, params: Mapping[str, Any]) -> bool:
        """Whether a point has a value for every parameter that applies."""
        return self.next_name(params) is None

    def overrides(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a point as dotted keys and values of the experiment; values per layer become lists.

        What is fixed for the point's family is among them.
        """
        overrides = dict(family_at(self.space, self._plain, params)[1])
        for name, value in params.items():
            key, bracket, _ = name.partition("[")
            if bracket:
                overrides.setdefault(key, []).append(value)
            else:
                overrides[key] = value
        return overrides

    def experiment(self, params: Mapping[str, Any], source: str = "trial", seed: int | None = None) -> Experiment:
        """Returns the experiment of a point, under another seed than its own if one is given.

        Raises:
            ConfigError: If the values do not go together.
        """
        key = repr(params)
        if self._latest is None or self._latest[0] != key:  # a proposal is judged, sized and started in a row
            self._latest = key, override(self._plain, self.overrides(params), source)
        experiment = self._latest[1]
        return experiment if seed is None else experiment.model_copy(update={"seed": seed})

    def by_family(self) -> dict[str, Experiment]:
        """Returns the base experiment of every family that trials may have, by name.

        Of another family than the base experiment's it is the first point to start with that is of it and whole, if
        there is one.
        """
        if FAMILY not in self.space.parameters:
            return {self.base.model.name: self.base}
        names = searched_families(self.space, self.base.model.name)
        found = {name: self.experiment({FAMILY: name}) for name in names}
        for point in reversed(self.points()):
            name = point.get(FAMILY)
            if name in found and name != self.base.model.name:
                with suppress(ConfigError):  # what it leaves out may not go with the rest
                    found[name] = self.experiment(point)
        return found

    def judge(
        self, params: Mapping[str, Any], memory_limit: float | None = None, leave_out: Container[str] = ()
    ) -> Verdict:
        """Evaluates the constraints for a point, before anything of it is started.

        Args:
            params: The point.
            memory_limit: Estimate, in GB, of a trial that ran out of memory: as much is too much.
            leave_out: Names whose constraints are not evaluated; an estimate of memory takes tenths of a second.
        """
        try:
            experiment = self.experiment(params, "")
        except ConfigError as error:
            return Verdict({INVALID: 1.0}, str(error).partition(": ")[2].splitlines()[0] or str(error))
        violations: dict[str, float] = {}
        reasons = []
        values = _Values(experiment, self._names)
        for expression in self.space.expressions:
            if any(name in leave_out for name in expression.names):
                continue
            if not values.keys() >= expression.names:
                violations[expression.text] = 0.0  # it names keys that this trial's family does not have
                continue
            try:
                violations[expression.text] = expression.violation(values)
            except ValueError as error:  # such as a division by zero, for these values only
                violations[expression.text] = 1.0
                reasons.append(str(error))
                continue
            if violations[expression.text] > 0:
                shown = " ".join(f"{name}={_short(values[name])}" for name in sorted(expression.names))
                reasons.append(f"{expression.text} does not hold ({shown})")
        if memory_limit is not None:
            need = cost("memory_gb", experiment)
            violations["memory"] = need / memory_limit - 1 + 1e-6 if need >= memory_limit else 0.0
            if violations["memory"] > 0:
                reasons.append(f"memory_gb={need:.3g}, and a trial of {memory_limit:.3g} ran out of memory")
        return Verdict(violations, "; ".join(reasons) or None)

    def points(self) -> list[dict[str, Any]]:
        """Returns the points to try first, by Optuna's names."""
        if self.space.start_with is not None:
            return [self.spread(dict(point)) for point in self.space.start_with]
        if self.space.sampler.row.enumerates:
            return []
        point = self.spread(get_keys(self._plain, self.space.parameters))
        return [point] if point else []

    def spread(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Returns dotted keys and values as Optuna's names and values that the space allows."""
        found: dict[str, Any] = {}
        for key, parameter in self.space.parameters.items():
            if key not in point:
                continue
            if not parameter.per_layer:
                found[key] = point[key]
                continue
            layers = point.get(layers_key(key), get_key(self._plain_at(point), layers_key(key)))
            values = point[key] if isinstance(point[key], list) else [point[key]] * layers
            found |= {f"{key}[{index}]": value for index, value in enumerate(values)}
        return {
            name: value
            for name, value in found.items()
            if (parameter := self.space.parameters[name.partition("[")[0]]).has(value)
            and self._applies(parameter, found)
        }

    def _applies(self, parameter: Parameter, params: Mapping[str, Any]) -> bool:
        return all(
            any(_same(self._value(key, params), value) for value in values) for key, values in parameter.when.items()
        )

    def _value(self, key: str, params: Mapping[str, Any]) -> Any:
        """Returns a key's value: as sampled, else as fixed; a parameter that was not sampled has none."""
        if key in params:
            return params[key]
        return _ABSENT if key in self.space.parameters else get_key(self._plain_at(params), key, _ABSENT)

    def _plain_at(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the base experiment, with what is default and fixed for the family that is sampled at a point."""
        return of_family(self._plain, *family_at(self.space, self._plain, params))


_ABSENT = object()


def cost(name: str, experiment: Experiment) -> float:
    """Returns a cost that follows from an experiment alone: ``parameters``, ``memory_gb`` or ``checkpoint_gb``."""
    from cdn_tune.tuning.study.costs import COST_OF  # torch, which reading a search does not need

    return COST_OF[name](experiment)


class _Values(Mapping[str, Any]):
    """An experiment's costs, computed on access, and its keys, as far as its family has them, by constraints' names."""

    def __init__(self, experiment: Experiment, names: Mapping[str, str]) -> None:
        self._experiment, self._plain = experiment, experiment.plain()
        known = {*COSTS, *get_keys(self._plain, names.values())}
        self._names = {name: key for name, key in names.items() if key in known}

    def __getitem__(self, name: str) -> Any:
        meant = self._names[name]
        return cost(meant, self._experiment) if meant in COSTS else get_key(self._plain, meant)

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _suggest(trial: BaseTrial, name: str, parameter: Parameter) -> Any:
    if isinstance(parameter, Categorical):
        return trial.suggest_categorical(name, parameter.choices)
    if isinstance(parameter, Float):
        return trial.suggest_float(name, parameter.low, parameter.high, step=parameter.step, log=parameter.log)
    return trial.suggest_int(name, parameter.low, parameter.high, step=parameter.step, log=parameter.log)


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
