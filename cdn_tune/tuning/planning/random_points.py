"""Points drawn at random from a search space, from which planning estimates what the space holds."""

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from cdn_tune.config import Experiment
from cdn_tune.config.keys import get_key
from cdn_tune.model.families import layers_key
from cdn_tune.tuning.results.record import quiet
from cdn_tune.tuning.study.candidates import Candidates, Verdict


@dataclass(frozen=True)
class Drawn:
    """A random point."""

    params: Mapping[str, Any]  # by Optuna's names
    verdict: Verdict
    experiment: Experiment | None  # None if it may not start


def draw(candidates: Candidates, count: int, seed: int = 0, leave_out: Container[str] = ()) -> list[Drawn]:
    """Draws points as Optuna's random sampler does, and judges them; `leave_out` is that of `Candidates.judge`."""
    with quiet():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    drawn = []
    for _ in range(count):
        params = candidates.suggest(study.ask())
        verdict = candidates.judge(params, leave_out=leave_out)
        drawn.append(Drawn(params, verdict, candidates.experiment(params) if verdict.reason is None else None))
    return drawn


def count_points(candidates: Candidates) -> int:
    """Returns how many points a space has, its conditions observed; a continuous parameter counts as one value."""
    space = candidates.space
    named = {key for parameter in space.parameters.values() for key in parameter.when}
    named |= {layers_key(key) for key, parameter in space.parameters.items() if parameter.per_layer}
    # Points that agree in what later parameters depend on are counted together.
    counts: Counter[tuple[tuple[str, Any], ...]] = Counter({(): 1})
    for key in space.order:
        values = space.parameters[key].values or (None,)
        following: Counter[tuple[tuple[str, Any], ...]] = Counter()
        for held, count in counts.items():
            names = candidates.names(key, dict(held))
            if names and key in named:
                for value in values:
                    following[(*held, (key, value))] += count
            else:
                following[held] += count * len(values) ** len(names)
        counts = following
    return sum(counts.values())


def never_sampled(candidates: Candidates) -> list[str]:
    """Returns a warning for every parameter whose condition names a key that is fixed to another value."""
    space, base = candidates.space, candidates.base.plain()
    return [
        f"parameters.{key} is never sampled: {other} is {get_key(base, other)}, not {' or '.join(map(str, wanted))}"
        for key, parameter in space.parameters.items()
        for other, wanted in parameter.when.items()
        if other not in space.parameters and get_key(base, other, wanted[0]) not in wanted
    ]
