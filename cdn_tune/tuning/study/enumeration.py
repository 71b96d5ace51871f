"""A sampler that goes through all points of a finite space, each once, in random order."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from cdn_tune.tuning.study.candidates import Candidates

Tree = dict[str, Any]  # from a value to the tree of what was proposed with it; a complete point has an empty one


class Enumeration(BaseSampler):
    """Proposes points that no trial has, whatever its state; conditions and values per layer are gone through too.

    A point that a killed process left half sampled counts as not proposed. What is proposed depends on the seed, the
    number of the proposal and the study alone.

    Args:
        candidates: The points.
        seed: Of the search.
        asked: Proposals asked before.
    """

    def __init__(self, candidates: Candidates, seed: int, asked: int) -> None:
        self._candidates, self._entropy = candidates, (seed, asked)
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
