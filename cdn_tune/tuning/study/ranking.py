"""What a study's trials are worth: objectives, values, roles, confirmations, order, Pareto front."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.config.space import MEASURED_COSTS
from cdn_tune.tuning.study.filtered_study import altered

ROLE = "role"
REFUSED, COPY, LEARNED, CONFIRMATION = "refused", "copy", "learned", "confirmation"
Role = Literal["trial", "refused", "copy", "learned", "confirmation"]
CONFIRMS, SEED = "confirms", "with_seed"  # attributes of a confirmation: the number of a trial, and a seed

PAUSED, PROMOTED = "paused", "promoted"  # attributes: at how many rungs a trial was paused, has been let past

VALUED = (TrialState.COMPLETE, TrialState.PRUNED)  # ended with what they had reached
FINISHED = (*VALUED, TrialState.FAIL)


def role_of(trial: FrozenTrial) -> Role:
    """Returns what an entry of the study is.

    ``trial``: one that was, is or will be trained. ``refused``: a proposal that broke a constraint, never started.
    ``copy``: a proposal equal to an earlier trial, never started; it carries that one's result. ``learned``: a result
    of another run. ``confirmation``: a trial trained again under another seed.
    """
    role: Role = trial.user_attrs.get(ROLE, "trial")
    return role


def own(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the entries that are trials of this run."""
    return [trial for trial in trials if role_of(trial) == "trial"]


def trained(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the entries that this run trains: its trials and their confirmations."""
    return [trial for trial in trials if role_of(trial) in ("trial", CONFIRMATION)]


def superseded(trials: Iterable[FrozenTrial]) -> set[int]:
    """Returns the numbers of failed trials that were tried again, as another trial with the same parameters."""
    return {trial.user_attrs["retry_of"] for trial in trials if "retry_of" in trial.user_attrs}


def is_paused(trial: FrozenTrial) -> bool:
    """Whether a trial waits at a rung with its checkpoint; on record it is running until it ends."""
    attributes = trial.user_attrs
    return trial.state == TrialState.RUNNING and attributes.get(PAUSED, 0) > attributes.get(PROMOTED, 0)


def as_ended(trial: FrozenTrial) -> FrozenTrial:
    """Returns a paused trial as it were if it ended now, pruned with what it has reached; any other one as it is."""
    if not is_paused(trial) or (value := value_of(trial)) is None:
        return trial
    return altered(trial, state=TrialState.PRUNED, values=[value])


def value_of(trial: FrozenTrial) -> float | None:
    """Returns the best val metric a trial has reached, whatever its state; None before its first epoch."""
    return max((value for value in trial.intermediate_values.values() if math.isfinite(value)), default=None)


def seed_of(trial: FrozenTrial) -> int | None:
    """Returns the seed under which a confirmation trains; None for any other entry, which has its experiment's."""
    return trial.user_attrs[SEED] if role_of(trial) == CONFIRMATION else None


def by_value(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Returns this run's finished trials that have a value, best val metric first; of equals, the earlier."""
    finished = [trial for trial in own(trials) if trial.state in VALUED]
    valued = [(value_of(trial), trial) for trial in finished]
    return [
        trial
        for value, trial in sorted(valued, key=lambda pair: (-(pair[0] or 0.0), pair[1].number))
        if value is not None
    ]


@dataclass(frozen=True)
class Confirmed:
    """What the confirmations of a trial have found; its own run, chosen for a high value, does not count.

    Attributes:
        runs: They, those that are complete, by number.
        mean: Of their best val metrics.
        interval: Of the mean, at 95 %, by Student's t with the variance over seeds pooled over all confirmed trials;
            None if no trial has two.
    """

    runs: tuple[FrozenTrial, ...]
    mean: float
    interval: tuple[float, float] | None

    @property
    def model(self) -> FrozenTrial:
        """The one whose checkpoint stands for the trial: the best on val; of equals, the earlier."""
        return max(self.runs, key=lambda run: (_value(run), -run.number))


def confirmed(trials: Iterable[FrozenTrial]) -> dict[int, Confirmed]:
    """Returns what confirmations have found, by the number of the confirmed trial."""
    runs: dict[int, list[FrozenTrial]] = defaultdict(list)
    for trial in trials:
        if role_of(trial) == CONFIRMATION and trial.state == TrialState.COMPLETE:
            runs[trial.user_attrs[CONFIRMS]].append(trial)
    means = {number: fmean(map(_value, each)) for number, each in runs.items()}
    squares = sum((_value(run) - means[number]) ** 2 for number, each in runs.items() for run in each)
    freedom = sum(len(each) - 1 for each in runs.values())
    half = _t95(freedom) * math.sqrt(squares / freedom) if freedom else None  # of one run
    return {
        number: Confirmed(
            tuple(each),
            mean := means[number],
            None if half is None else (mean - half / math.sqrt(len(each)), mean + half / math.sqrt(len(each))),
        )
        for number, each in runs.items()
    }


def ranking(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Returns this run's finished trials that have a value, best first.

    Confirmed ones come first, by the mean over their confirmations, then the others, by their best val metric.
    """
    trials = list(trials)
    means = {number: found.mean for number, found in confirmed(trials).items()}
    return sorted(by_value(trials), key=lambda trial: (trial.number not in means, -means.get(trial.number, 0.0)))


def models(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the entries whose checkpoints stand for the trials of the `ranking`, in its order."""
    trials = list(trials)
    found = confirmed(trials)
    return [found[trial.number].model if trial.number in found else trial for trial in ranking(trials)]


def _value(trial: FrozenTrial) -> float:
    return value_of(trial) or 0.0


def _t95(freedom: int) -> float:
    """Returns the 97.5 % quantile of Student's t."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # takes a while, and few searches need it

    return float(stdtrit(freedom, 0.975))


def pareto_front(trials: Iterable[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """Returns this run's complete trials that no other one beats in every objective, best first objective first."""
    signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in directions]
    points = [
        ([sign * value for sign, value in zip(signs, trial.values, strict=True)], trial)
        for trial in own(trials)
        if trial.state == TrialState.COMPLETE and trial.values is not None
    ]
    points.sort(key=lambda pair: (pair[0], pair[1].number))
    front: list[tuple[list[float], FrozenTrial]] = []
    for costs, trial in points:  # sorted so, a point is beaten by an earlier one or by none, and then by one in front
        if not any(_beats(other, costs) for other, _ in front):
            front.append((costs, trial))
    return [trial for _, trial in front]


def front_ranks(costs: Sequence[Sequence[float]]) -> list[int]:
    """Returns each point's non-dominated rank: 0 on the Pareto front, 1 on that of the others, and so on."""
    fronts: list[list[Sequence[float]]] = []
    ranks = [0] * len(costs)
    for place in sorted(range(len(costs)), key=lambda place: list(costs[place])):  # beaten by earlier ones or by none
        point = costs[place]
        free = (rank for rank, front in enumerate(fronts) if not any(_beats(other, point) for other in front))
        ranks[place] = next(free, len(fronts))
        if ranks[place] == len(fronts):
            fronts.append([])
        fronts[ranks[place]].append(point)
    return ranks


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


class Objectives:
    """The objectives of a search, in order: values of the model of a trial's best epoch by the first objective.

    Args:
        space: Names them.
        base: Names the val metric that chooses epochs; the only objective where the space names none.
    """

    def __init__(self, space: SearchSpace, base: Experiment) -> None:
        self.names = tuple(objective.metric for objective in space.objectives) or (base.eval.metric,)
        given = {objective.metric: objective.direction for objective in space.objectives}
        self.directions = [
            given.get(name) or ("minimize" if name in MEASURED_COSTS else "maximize") for name in self.names
        ]

    def values(self, trial: FrozenTrial, reached: float) -> dict[str, float | None]:
        """Returns the objectives of a recorded trial by name; `reached` is its best val metric."""
        first, *others = self.names
        return {first: reached, **{name: _recorded(trial.user_attrs, name) for name in others}}


def _recorded(attributes: dict[str, Any], name: str) -> float | None:
    found = attributes.get(name) if name in MEASURED_COSTS else attributes.get("val", {}).get(name)
    return None if found is None else float(found)
