"""Learning curves of any configuration, predicted from recorded ones.

A prediction is a mean of the recorded curves, each weighted by how near its configuration is, plus what a near one
differs by from its own mean: its whole residual curve, so that val, test and time of a trial belong together. How much
each parameter counts for nearness is chosen by leaving each configuration out.

Shape letters: C configurations, P parameters, R records (configurations times seeds), E epochs, V series.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cdn_tune.config import Categorical, Parameter
from cdn_tune.config.yaml import GREATEST
from cdn_tune.tuning.engine.virtual.engine import CurvePoint
from cdn_tune.tuning.simulation.curves import Curves, Recorded

Array = npt.NDArray[np.float64]

_SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # what a parameter may count for nearness
_ROUNDS = 2  # over all parameters, in which these are chosen
_FITTED = 300  # configurations by which they are chosen, at most
_FOLDS = 5
_MOST = 1000  # configurations that predictions are made from; of more, evenly spread ones
_SAME = 1e-9  # a distance that is none: other processors round otherwise, and samplers with them
_NEAR = 5  # recorded trials of a run whose residual a new one may have


@dataclass(frozen=True)
class Predicted:
    """A predicted learning curve.

    Attributes:
        points: Its epochs, the metric that chooses epochs first.
        truth: What the model of each epoch is worth: its test metric, or without test the val metric free of noise.
        start_seconds: From the trial's assignment to its first step.
        distance: To the nearest recorded configuration: 0 is the same, 1 differs in every parameter as much as can be.
    """

    points: list[CurvePoint]
    truth: Array
    start_seconds: float
    distance: float


class Landscape:
    """Predicts learning curves.

    Of a table, a prediction has the residual of the nearest configuration under one of its seeds, so that there it is
    the recorded curve. Of a run, whose configurations were trained once, a new configuration has that of one of the
    nearest, at random, left out of its own mean; a recorded one has its own curve.

    Args:
        curves: The recorded ones.
        metrics: Names of the val metrics that are predicted, the one that chooses epochs first.
        fixed: Values by dotted key of what a configuration does not say.
    """

    def __init__(self, curves: Curves, metrics: Sequence[str], fixed: Mapping[str, Any] | None = None) -> None:
        self.curves, self._metrics, self._fixed = curves, tuple(metrics), fixed or {}
        self._names = list(curves.header.parameters)
        groups: dict[str, list[int]] = {}
        for index, record in enumerate(curves.records):
            groups.setdefault(_key(record.parameters), []).append(index)
        chosen = np.unique(np.linspace(0, len(groups) - 1, min(_MOST, len(groups))).round().astype(int))
        groups = {key: groups[key] for key in np.array(list(groups))[chosen]}
        self._groups = list(groups.values())
        self._places = {key: place for place, key in enumerate(groups)}
        self._series = np.stack([self._of(record) for record in curves.records])  # [R, E, V]
        self._means = np.stack([self._series[members].mean(0) for members in self._groups])  # [C, E, V]
        recorded = [self._encoded(curves.records[members[0]].parameters) for members in self._groups]
        self._columns = sorted({name for point in recorded for name in point})
        self._points = [np.array([point.get(name, math.nan) for point in recorded]) for name in self._columns]
        self._is_choice = [isinstance(self._parameter(name), Categorical) for name in self._columns]
        self._apart = self._distances(self._points)  # [P, C, C]
        self._final = self._means[:, :, 0].max(1)  # [C], of the metric that chooses
        self._scales = _fitted(self._apart, self._final)
        self._fitted_means = self._mean_at(self._apart, leave_out=curves.is_run)  # [C, E, V], residuals count from them

    @property
    def has_test(self) -> bool:
        """Whether the test metric of every model is known."""
        return all(self._metrics[0] in record.test for record in self.curves.records)

    @property
    def configurations(self) -> int:
        """How many were recorded."""
        return len(self._groups)

    @property
    def best_truth(self) -> float:
        """What the best of the recorded models is worth, each of the epoch that val chooses."""
        series = self._series if self.has_test else self._mean_at(self._apart)
        chosen = series[:, :, 0].argmax(1)
        return float(series[np.arange(len(series)), chosen, self._truth].max())

    def rank_correlation(self) -> float:
        """Returns Spearman's correlation of predicted and recorded best val metric, of configurations left out.

        A fifth of them at a time is predicted from the others; NaN with too few of them, or where all are equal.
        """
        if self.configurations < 2 * _FOLDS or np.ptp(self._final) == 0:
            return math.nan
        folds = np.random.default_rng(0).permutation(self.configurations) % _FOLDS
        predicted = np.empty(self.configurations)
        for fold in range(_FOLDS):
            inside, outside = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            known = self._apart[:, :, inside]
            scales = _fitted(known[:, inside], self._final[inside])
            weights = _weights(known[:, outside], scales)
            predicted[outside] = (weights @ self._means[inside][:, :, 0]).max(1)
        return math.nan if np.ptp(predicted) == 0 else float(np.corrcoef(_ranks(predicted), _ranks(self._final))[0, 1])

    def predict(self, parameters: Mapping[str, Any], draw: np.random.Generator) -> Predicted:
        """Returns the learning curve of a configuration, by dotted keys; `draw` chooses seed or noise."""
        values = _flat({name: self._fixed[name] for name in self._names if name in self._fixed} | dict(parameters))
        point = self._encoded(values)
        target = [np.array([point.get(name, math.nan)]) for name in self._columns]
        apart = self._distances(target)  # [P, 1, C]
        distances = np.sqrt((apart[:, 0] ** 2).mean(0))
        nearness = (self._scales[:, None] ** 2 * apart[:, 0] ** 2).sum(0) + 1e-9 * distances
        same = self._places.get(_key({name: value for name, value in values.items() if name in point}))
        if same is None and distances.min() < _SAME:
            same = int(distances.argmin())
        place = int(nearness.argmin()) if same is None else same
        mean = self._mean_at(apart)[0]
        if self.curves.is_run and same is None:
            place = int(draw.choice(np.argsort(nearness, kind="stable")[:_NEAR]))
        record = int(draw.choice(self._groups[place]))
        series = self._series[record]
        if same is None:
            series = mean + series - self._fitted_means[place]
        own = self.curves.records[record]
        return Predicted(
            self._as_points(series, own.steps),
            np.clip((series if self.has_test else mean)[:, self._truth], 0.0, 1.0),
            own.start_seconds,
            float(distances.min()),
        )

    @property
    def _truth(self) -> int:
        return len(self._metrics) if self.has_test else 0

    def _of(self, record: Recorded) -> Array:
        """Returns a record's series [E, V]: val metrics, test metric, loss, logarithm of each epoch's seconds."""
        test = record.test.get(self._metrics[0], record.val[self._metrics[0]])
        seconds = np.diff(np.array([0.0, *record.seconds]))
        logarithm = np.log(np.maximum(seconds, 1e-6))
        return np.stack([*(np.array(record.val[name]) for name in self._metrics), test, record.loss, logarithm], axis=1)

    def _as_points(self, series: Array, steps: int) -> list[CurvePoint]:
        count = len(self._metrics)
        val = np.clip(series[:, :count], 0.0, 1.0)
        seconds = np.exp(series[:, -1])
        return [
            CurvePoint(
                dict(zip(self._metrics, map(float, val[epoch]), strict=True)),
                float(seconds[epoch]),
                float(series[epoch, -2]),
                steps,
            )
            for epoch in range(len(series))
        ]

    def _parameter(self, name: str) -> Parameter:
        return self.curves.header.parameters[name.partition("[")[0]]

    def _encoded(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Returns a configuration's known values as numbers: within [0, 1] of a range, the place of a choice."""
        return {
            name: _number(self._parameter(name), value)
            for name, value in values.items()
            if name.partition("[")[0] in self.curves.header.parameters
        }

    def _distances(self, points: Sequence[Array]) -> Array:
        """Returns how far N points, a column [N] a parameter, lie from the recorded ones: [P, N, C] within [0, 1].

        A parameter that one of two has, and the other has not, lies 1 apart.
        """
        found = []
        for values, recorded, is_choice in zip(points, self._points, self._is_choice, strict=True):
            apart = np.abs(values[:, None] - recorded)
            apart = (apart != 0).astype(float) if is_choice else np.minimum(apart, 1.0)
            absent = np.isnan(values)[:, None], np.isnan(recorded)
            found.append(np.where(absent[0] | absent[1], (absent[0] != absent[1]).astype(float), apart))
        return np.stack(found)

    def _mean_at(self, apart: Array, leave_out: bool = False) -> Array:
        """Returns the weighted means [N, E, V] at points so far apart [P, N, C]; `leave_out` is that of `_weights`."""
        found: Array = np.tensordot(_weights(apart, self._scales, leave_out), self._means, 1)
        return found


@dataclass
class DrawnCurves:
    """The learning curves of one simulated search, as the virtual engine asks for them.

    Attributes:
        landscape: Predicts them.
        seed: Of what is drawn.
        trials: What was predicted for each trial.
    """

    landscape: Landscape
    seed: int
    trials: dict[int, Predicted] = field(default_factory=dict)

    def __call__(self, number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
        """Returns a trial's curve."""
        draw = np.random.default_rng([self.seed, number])
        found = self.trials[number] = self.landscape.predict(parameters, draw)
        return found.points

    def start_seconds(self, number: int) -> float:
        """Returns a trial's start-up time."""
        return self.trials[number].start_seconds


def _weights(apart: Array, scales: Array, leave_out: bool = False) -> Array:
    """Returns the weights [N, C] of recorded configurations at points so far apart [P, N, C]; each row adds up to 1.

    `leave_out`: the points are the recorded ones, and each has no weight at itself.
    """
    logits = -0.5 * np.tensordot(scales**2, apart**2, 1)
    if leave_out and len(logits) > 1:
        np.fill_diagonal(logits, -np.inf)
    weights: Array = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return weights


def _fitted(apart: Array, values: Array) -> Array:
    """Returns how much each parameter counts [P], by which left-out ranks of values [C] are predicted best."""
    if len(values) > _FITTED:
        chosen = np.sort(np.random.default_rng(0).permutation(len(values))[:_FITTED])
        apart, values = apart[:, chosen][:, :, chosen], values[chosen]
    ranks = _ranks(values) / len(values)

    def error(scales: Array) -> float:
        return float(((_weights(apart, scales, leave_out=True) @ ranks - ranks) ** 2).mean())

    scales = np.full(len(apart), 2.0)
    for _ in range(_ROUNDS):
        for place in range(len(scales)):
            tried = [np.where(np.arange(len(scales)) == place, scale, scales) for scale in _SCALES]
            scales = min(tried, key=error)
    return scales


def _ranks(values: Array) -> Array:
    """Returns the ranks of some values, from 1; equal ones share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def _flat(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration by Optuna's names: values per layer, a list, one by one."""
    found: dict[str, Any] = {}
    for key, value in parameters.items():
        found |= (
            {f"{key}[{index}]": each for index, each in enumerate(value)} if isinstance(value, list) else {key: value}
        )
    return found


def _number(parameter: Parameter, value: Any) -> float:
    """Returns a value as a number; a choice that the parameter does not have is as far from all others as can be."""
    if isinstance(parameter, Categorical):
        places = [repr(choice) for choice in parameter.choices]
        return float(places.index(repr(value))) if repr(value) in places else -1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= GREATEST:
        return math.nan
    if parameter.log and value <= 0:
        return math.nan
    low, high = float(parameter.low), float(parameter.high)
    if low == high:
        return 0.0
    if parameter.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _key(parameters: Mapping[str, Any]) -> str:
    return json.dumps(parameters, sort_keys=True)
