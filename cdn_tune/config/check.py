"""Checks a search space against its base experiment: keys, values, conditions, metrics, lengths."""

import difflib
from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import Any

from cdn_tune.config.experiment import Experiment, SequenceConfig
from cdn_tune.config.expression import COSTS, Expression
from cdn_tune.config.keys import dotted_keys, families_with, get_key, leaf_keys, unknown_key
from cdn_tune.config.load import of_family, override
from cdn_tune.config.parameters import Parameter
from cdn_tune.config.space import MEASURED_COSTS, SearchSpace
from cdn_tune.config.yaml import flow, shown
from cdn_tune.errors import ConfigError
from cdn_tune.model import families

FAMILY = "model.name"  # the key by which a space chooses among families
SEQUENCE = "data.sequence."  # keys of no use to families that read no sequences

# What every trial of a search must share: the data it is measured on, and the measure.
COMPARED = (
    *("name", "eval.", "data.dataset", "data.root", "data.features", "data.feature_size"),
    *("data.val_fraction", "train.eval_queries", "tracking."),
)
_MOST = 2000  # combinations of values that are tried to mend one that does not fit alone
_MOST_IN_ALL = 20_000  # combinations of values that are tried for a whole space: seconds


def check_space(space: SearchSpace, experiment: Experiment, source: str) -> None:
    """Raises an error if a search space names what does not exist, or what no trial could use.

    A value that does not fit the base experiment is accepted if changing one other parameter mends it: 2 layers do
    not go with the base's 4 dynamic ones, but do with the 1 or 2 that the space searches over.

    Args:
        space: The space.
        experiment: Its base experiment under all fixed overrides.
        source: Origin that errors name, usually the file.

    Raises:
        ConfigError: Naming the first wrong key and value, and the remedy.
    """
    _check_fixed(space, experiment, source)
    for key, parameter in space.parameters.items():
        check_key(f"{source}: parameters", key)
        for value in parameter.probes if key == FAMILY else ():
            override(experiment.plain(), {key: value, **space.family_overrides.get(str(value), {})}, source)
        if key.startswith(COMPARED):
            raise ConfigError(
                f"{source}: parameters.{key}: trials that differ in it cannot be compared; put it in overrides"
            )
        _check_per_layer(space, key, parameter, source)
        _check_conditions(space, key, parameter, experiment, source)
    for key, parameter in space.parameters.items():
        _check_family(space, key, parameter, experiment, source)
    values = _Values(space, experiment, source)
    for key, parameter in space.parameters.items():
        for value in parameter.probes:
            _check_value(values, key, parameter, value, source)
    for place, point in enumerate(space.start_with or ()):
        _check_point(values, point, f"{source}: start_with[{place}]")
    for expression in space.expressions:
        _check_constraint(expression, values, source)
    _check_objectives(space, experiment, source)
    _check_length(space, experiment, source)


def family_at(space: SearchSpace, base: Mapping[str, Any], point: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Returns the family of a point, by default that of the base experiment, and the dotted keys fixed for it."""
    name = str(point.get(FAMILY, families.name_in(base)))
    return name, space.family_overrides.get(name, {})


def resolve_name(name: str) -> str:
    """Returns the cost or dotted key that a name in a constraint stands for: itself, or the key that ends so.

    Raises:
        ConfigError: If it is unknown, a section, or several keys end so.
    """
    known = leaf_keys(Experiment)
    if name in COSTS or name in known:
        return name
    ending = [key for key in known if key.rpartition(".")[2] == name]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise ConfigError(f"{name} may be {' or '.join(ending)}; write it in full")
    if name in dotted_keys(Experiment):
        raise ConfigError(f"{name} is a section; name a key in it")
    leaves = {key.rpartition(".")[2]: key for key in reversed(known)} | {key: key for key in (*known, *COSTS)}
    near = difflib.get_close_matches(name, leaves, n=1, cutoff=0.6)
    mend = f"did you mean {leaves[near[0]]}?" if near else f"costs are {', '.join(COSTS)}"
    raise ConfigError(f"{name} is no key and no cost; {mend}")


class _Values:
    """The values that stand for a space's parameters, tried on its base experiment."""

    def __init__(self, space: SearchSpace, experiment: Experiment, source: str) -> None:
        self.space, self.base = space, experiment.plain()
        self._source, self._tried = source, 0

    def count(self) -> None:
        """Counts a combination that is tried; raises a `ConfigError` if there are so many that it would take long."""
        self._tried += 1
        if self._tried > _MOST_IN_ALL:
            raise ConfigError(
                f"{self._source}: has more than {_MOST_IN_ALL:,} combinations of values to check; give it fewer "
                "choices, conditions, points or constraints"
            )

    def contexts(self, key: str, parameter: Parameter) -> Iterator[dict[str, Any]]:
        """Yields the points beside a parameter's value: values of its conditions, then of one other parameter too."""
        conditions = {other: values for other, values in parameter.when.items() if other in self.space.parameters}

        def held() -> Iterator[dict[str, Any]]:
            return (dict(zip(conditions, each, strict=True)) for each in product(*conditions.values()))

        yield from held()
        for other, varying in self.space.parameters.items():
            if other != key and other not in conditions:
                yield from ({**context, other: probe} for context in held() for probe in varying.probes)

    def held(self, key: str, point: Mapping[str, Any]) -> Any:
        """Returns a key's value at a point: as set there, else the base's; None if it has none."""
        if key in point:
            return point[key]
        return get_key(of_family(self.base, *family_at(self.space, self.base, point)), key)

    def spread(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a point as overrides, its family's among them; one value for all layers becomes a list."""
        spread = {**family_at(self.space, self.base, point)[1], **point}
        for key in point:
            if key in self.space.parameters and self.space.parameters[key].per_layer:
                spread[key] = [point[key]] * (self.held(families.layers_key(key), point) or 0)
        return spread

    def experiment(self, point: Mapping[str, Any], source: str) -> Experiment:
        return override(self.base, self.spread(point), source)

    def fit(self, point: Mapping[str, Any]) -> bool:
        self.count()
        try:
            self.experiment(point, "")
        except ConfigError:
            return False
        return True


def check_key(where: str, key: str) -> None:
    """Raises a `ConfigError` if a key does not exist or is a section."""
    if key not in dotted_keys(Experiment):
        raise ConfigError(f"{where}.{unknown_key(Experiment, key)}")
    if key not in leaf_keys(Experiment):
        inner = next(other for other in leaf_keys(Experiment) if other.startswith(f"{key}."))
        raise ConfigError(f"{where}.{key}: is a section; name a key in it, such as {inner}")


def searched_families(space: SearchSpace, base: str) -> list[str]:
    """Returns the families that trials may have: `base`, that of the base experiment, where none is sampled."""
    return list(map(str, space.parameters[FAMILY].probes)) if FAMILY in space.parameters else [base]


def reached(space: SearchSpace, key: str, base: str) -> list[str]:
    """Returns the families in which a parameter is sampled, by its conditions and theirs; `base` where none is."""
    every = searched_families(space, base)
    found: dict[str, list[str]] = {}
    for each in space.order:  # those that conditions name come first
        names = every
        for other, values in space.parameters[each].when.items():
            within = list(map(str, values)) if other == FAMILY else found[other] if other in found else readers(other)
            names = [name for name in names if name in within]
        found[each] = names
    return found[key]


def readers(key: str) -> list[str]:
    """Returns the families to which a dotted key is of use: that have it, and read sequences where it is of those."""
    found = families_with(Experiment, key)
    return [name for name in found if families.family(name).inputs.sequences] if key.startswith(SEQUENCE) else found


def without_effect(experiment: Experiment, space: SearchSpace | None = None) -> str | None:
    """Returns the line that tells of settings of sequences, where no family reads any; None if there are none.

    Args:
        experiment: A trial, or the base experiment of a space.
        space: What is searched over it, if anything.
    """
    name, default = experiment.model.name, SequenceConfig().plain()
    if any(space.reads(name) if space is not None else [experiment.model.inputs.sequences]):
        return None
    held = experiment.data.sequence.plain()
    changed = [f"{SEQUENCE}{key}={shown(value)}" for key, value in held.items() if value != default[key]]
    if not changed:
        return None
    return (
        f"{', '.join(changed)}: without effect, model.name={name} reads no sequences; leave it out, or choose "
        f"model.name={' or '.join(readers(SEQUENCE + 'form'))}"
    )


def _check_family(space: SearchSpace, key: str, parameter: Parameter, experiment: Experiment, source: str) -> None:
    """Raises an error if a parameter is sampled in trials of a family without that key, with the line to add."""
    owners, base = readers(key), experiment.model.name
    others = [name for name in reached(space, key, base) if name not in owners]
    if not others:
        return
    fitting = [name for name in owners if name in searched_families(space, base)] or owners
    wanted: dict[str, Any] = {FAMILY: fitting[0] if len(fitting) == 1 else fitting}
    conditions = {other: values for other, values in parameter.when.items() if other != FAMILY}
    wanted |= {other: values[0] if len(values) == 1 else list(values) for other, values in conditions.items()}
    line, use = f"when: {flow(wanted)}", "of use to" if key.startswith(SEQUENCE) else "a key of"
    if FAMILY not in space.parameters:
        line += f", and to parameters: {FAMILY}: {{type: categorical, choices: [{base}, {', '.join(owners)}]}}"
    raise ConfigError(
        f"{source}: parameters.{key}: is {use} {' and '.join(owners)}, but sampled where model.name is "
        f"{' or '.join(others)}; add to it: {line}"
    )


def _check_fixed(space: SearchSpace, experiment: Experiment, source: str) -> None:
    """Raises an error if what is fixed for a family is not its own to fix, or does not make an experiment."""
    searched = searched_families(space, experiment.model.name)
    for unknown in (name for name in searched if name not in families.known()):
        override(experiment.plain(), {FAMILY: unknown}, source)  # raises
    for name, fixed in space.family_overrides.items():
        where = f"{source}: family_overrides.{name}"
        if name not in searched:
            raise ConfigError(f"{where}: trials are of {' or '.join(searched)}; drop it, or search model.name")
        for key in fixed:
            check_key(where, key)
            if key == FAMILY or key.startswith(COMPARED):
                raise ConfigError(f"{where}.{key}: must be the same in all trials; put it in overrides")
            if key.startswith(SEQUENCE) and name not in readers(key):
                raise ConfigError(
                    f"{where}.{key}={shown(fixed[key])}: without effect, {name} reads no sequences; drop it"
                )
            if key in space.parameters and name in reached(space, key, experiment.model.name):
                raise ConfigError(f"{where}.{key}: is in parameters too, and sampled in these trials; keep one")
        override(experiment.plain(), {FAMILY: name, **fixed}, where)


def _check_per_layer(space: SearchSpace, key: str, parameter: Parameter, source: str) -> None:
    if not parameter.per_layer:
        return
    where, listed = f"{source}: parameters.{key}.per_layer", families.per_layer(key)
    if listed is None:
        able = [other for other in leaf_keys(Experiment) if families.per_layer(other)]
        raise ConfigError(f"{where}: {key} takes no list; only {' and '.join(able)} do. Drop per_layer")
    layers, kind = listed
    if kind is bool and not all(isinstance(value, bool) for value in parameter.probes):
        raise ConfigError(
            f"{where}: the value of a layer is true or false; write type: categorical, choices: [true, false]"
        )
    counted = space.parameters.get(layers)
    for other, values in counted.when.items() if counted else ():
        if not set(parameter.when.get(other, ("\0",))) <= set(values):
            raise ConfigError(
                f"{where}: needs {layers} in every trial, and that has a `when`; drop one of them, or give both the "
                "same `when`"
            )


def _check_conditions(space: SearchSpace, key: str, parameter: Parameter, experiment: Experiment, source: str) -> None:
    for other, values in parameter.when.items():
        where = f"{source}: parameters.{key}.when"
        check_key(where, other)
        if other == key:
            raise ConfigError(f"{where}: {key} cannot depend on itself; drop the condition")
        varying = space.parameters.get(other)
        if varying is not None and varying.per_layer:
            raise ConfigError(f"{where}.{other}: has a value per layer, so no condition can name it; drop one of them")
        for value in values:
            if varying is None:
                name = next(iter(families_with(Experiment, other)), "")
                known = other in dotted_keys(Experiment, family=experiment.model.name)
                override(experiment.plain() if known else of_family(experiment.plain(), name), {other: value}, where)
            elif not varying.has(value):
                fault = f"{value!r} is never sampled, parameters.{other} does not allow it"
                raise ConfigError(f"{where}.{other}: {fault}; mend one of them")


def _check_value(values: _Values, key: str, parameter: Parameter, value: Any, source: str) -> None:
    """Raises an error if a value fits, in a family in which it is sampled, no value of any one other parameter."""
    base = values.base["model"]["name"]
    searches = FAMILY in values.space.parameters and key != FAMILY
    names = reached(values.space, key, base) if searches else []
    among = {name: {FAMILY: name} if searches else {} for name in names or [base]}

    def fits(family: dict[str, Any]) -> bool:
        points = ({**family, **each, key: value} for each in islice(values.contexts(key, parameter), _MOST))
        return any(values.fit(point) for point in points if family.items() <= point.items())

    fitting = [name for name, family in among.items() if fits(family)]
    for name, family in among.items():
        if name in fitting:
            continue
        try:
            values.experiment({**family, key: value}, source)  # raises, unless only its own conditions are at fault
            values.experiment({**next(values.contexts(key, parameter)), **family, key: value}, source)
        except ConfigError as error:
            line = (
                f"; or sample it elsewhere alone: in parameters.{key}.when set {flow({FAMILY: fitting})}"
                if fitting
                else ""
            )
            raise ConfigError(f"{error}{line}") from None


def _check_point(values: _Values, point: Mapping[str, Any], source: str) -> None:
    for key in point:
        for other, wanted in values.space.parameters[key].when.items():
            held = point.get(other, None if other in values.space.parameters else values.held(other, point))
            if held is not None and held not in wanted:
                raise ConfigError(
                    f"{source}: {key} is not sampled where {other} is {held}; drop it from the point, or set {other}"
                )
    left = [(key, probe) for key, each in values.space.parameters.items() if key not in point for probe in each.probes]
    if not values.fit(point) and not any(values.fit({**point, key: probe}) for key, probe in left):
        values.experiment(point, source)


def _check_constraint(expression: Expression, values: _Values, source: str) -> None:
    """Raises an error if a constraint has unknown names or cannot be computed for a parameter's values."""
    where = f"{source}: constraint {expression.text!r}"
    try:
        meant = {name: resolve_name(name) for name in expression.names}
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    searched = [(key, values.space.parameters[key]) for key in meant.values() if key in values.space.parameters]
    owners = [set(families_with(Experiment, key)) for key in meant.values() if key not in COSTS]
    for point in ({}, *({key: probe} for key, parameter in searched for probe in parameter.probes)):
        values.count()
        spread = values.spread(point)
        known = {name: 1.0 if key in COSTS else values.held(key, spread) for name, key in meant.items()}
        if any(point.get(FAMILY, values.base["model"]["name"]) not in each for each in owners):
            continue  # the constraint does not apply to this family
        try:
            expression.violation(known)
        except ValueError as error:
            shown = " ".join(f"{name}={known[name]}" for name in sorted(known))
            raise ConfigError(f"{source}: {error} ({shown}); compare numbers with numbers") from None


def _check_objectives(space: SearchSpace, experiment: Experiment, source: str) -> None:
    metric, metrics, named = experiment.eval.metric, experiment.eval.metrics, list[str]()
    able = (*metrics, *MEASURED_COSTS)
    for place, objective in enumerate(space.objectives):
        where = f"{source}: objectives[{place}]"
        if objective.metric in named:
            raise ConfigError(f"{where}: {objective.metric} is named twice; drop one")
        named.append(objective.metric)
        if objective.metric not in able:
            near = difflib.get_close_matches(objective.metric, able, n=1)
            mend = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(able)}"
            raise ConfigError(f"{where}: {objective.metric!r} is neither measured on val nor a cost; {mend}")
        if place == 0 and objective.metric != metric:
            raise ConfigError(
                f"{where}: the first objective, by which epochs are chosen and trials stopped, must be eval.metric, "
                f"which is {metric}; put {metric} first, or "
                + (f"overrides: {{eval.metric: {objective.metric}}}" if objective.metric in metrics else "add it")
            )
        if objective.metric in metrics and objective.direction == "minimize":
            raise ConfigError(f"{where}: {objective.metric} is better the higher it is; drop direction: minimize")
    target = space.budget.target
    if target is not None and not 0 < target <= 1:
        fault = f"{metric} is a share above 0 and up to 1, as 0.45 for 45 %"
        raise ConfigError(f"{source}: budget.target={target:g}: {fault}")


def _check_length(space: SearchSpace, experiment: Experiment, source: str) -> None:
    """Raises an error if trials are too short for early stopping, or batches too small for the workers."""
    stopping, workers = space.early_stopping, space.resources.workers
    for name in stopping.metrics:
        if name not in experiment.eval.metrics:
            raise ConfigError(
                f"{source}: early_stopping.metrics: {name} is not measured on val; choose among "
                f"{', '.join(experiment.eval.metrics)}"
            )
    epochs = most(space, "train.epochs", experiment.train.epochs)
    if stopping.name != "none" and stopping.unit == "epoch" and stopping.least > epochs:
        raise ConfigError(
            f"{source}: early_stopping.min_resource={stopping.min_resource} is above train.epochs={epochs}, so no "
            "trial would ever be stopped; lower it, or use early_stopping: {name: none}"
        )
    batch = -most(space, "train.batch_size", experiment.train.batch_size, sign=-1)
    if batch < workers:
        raise ConfigError(
            f"{source}: resources.workers={workers}: a batch of train.batch_size={batch} cannot be shared among them; "
            "lower workers, or raise train.batch_size"
        )


def most(space: SearchSpace, key: str, base: int, sign: int = 1) -> int:
    """Returns the largest value (times `sign`) that a whole-numbered key takes, of all families."""
    fixed = (each[key] for each in space.family_overrides.values() if key in each)
    values = space.parameters[key].probes if key in space.parameters else (base, *fixed)
    return max(sign * value for value in values if isinstance(value, int))
