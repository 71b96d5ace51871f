"""How many epochs a search will train, told from its early-stopping rule.

Successive halving is played on random values: a trial goes on from a rung if its value is among the best
``max(floor(n / eta), 1)`` of the n that have arrived there, itself included, and nobody waits for others
(asynchronous successive halving, arXiv 1810.05934; Optuna's `SuccessiveHalvingPruner`). Hyperband spreads its trials
over brackets of successive halving that begin later and later, in proportion to ``ceil(brackets * eta^s / (s + 1))``
(Optuna's `HyperbandPruner`). It is assumed that the order of trials at one rung is their order at the next, and that
they arrive in no order; a sampler that proposes better and better trials trains somewhat longer. What the other rules
stop depends on the values themselves, so the full length is told for them: an upper bound.
"""

from __future__ import annotations

import math
from bisect import insort
from itertools import count, takewhile

import numpy as np

from cdn_tune.config import Experiment, SearchSpace

HALVING = ("asha", "hyperband")
_PLAYS = 40


def expected_epochs(
    space: SearchSpace, experiment: Experiment, trials: int, steps_per_epoch: int | None = None
) -> float | None:
    """Returns the epochs that all trials together are expected to train.

    Args:
        space: Names the rule.
        experiment: Tells the length of a trial, and the epochs after which it is evaluated.
        trials: Trials in all.
        steps_per_epoch: Optimiser steps, for rules that count in steps.

    Returns:
        The epochs, an upper bound for rules other than asha and hyperband; None if steps are needed and unknown.
    """
    rule, length = space.early_stopping, experiment.train.epochs
    if rule.name not in HALVING:
        return float(trials * length)
    if rule.unit == "step" and steps_per_epoch is None:
        return None
    scale = 1 if rule.unit == "epoch" else steps_per_epoch or 1
    evaluated = sorted({*range(1, length + 1, experiment.train.eval_every), length})
    eta, least = rule.reduction_factor, rule.min_resource

    def rungs(bracket: int) -> list[int]:
        """Epochs at whose end a bracket's trials are compared."""
        resources = (least * eta ** (bracket + rung) for rung in count())
        ends = takewhile(lambda resource: resource <= length * scale, resources)
        return [next(epoch for epoch in evaluated if epoch * scale >= resource) for resource in ends]

    brackets = 1
    if rule.name == "hyperband":
        brackets = max(math.floor(math.log(length * scale / least, eta) + 1e-9) + 1, 1)
    shares = np.array([math.ceil(brackets * eta**s / (s + 1)) for s in reversed(range(brackets))], dtype=float)
    generator = np.random.default_rng(0)
    epochs = 0
    for _ in range(_PLAYS):
        of_brackets = generator.choice(brackets, size=trials, p=shares / shares.sum())
        for bracket in range(brackets):
            values = generator.random(int((of_brackets == bracket).sum()))
            epochs += _played(values.tolist(), rungs(bracket), length, eta)
    return epochs / _PLAYS


def _played(values: list[float], rungs: list[int], length: int, eta: int) -> int:
    """Returns the epochs that one bracket's trials train, one after the other, each with one value throughout."""
    arrived: list[list[float]] = [[] for _ in rungs]
    epochs = 0
    for value in values:
        trained = length
        for rung, others in zip(rungs, arrived, strict=True):
            insort(others, value)
            if sum(other > value for other in others) >= max(len(others) // eta, 1):
                trained = rung
                break
        epochs += trained
    return epochs
