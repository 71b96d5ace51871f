"""Rungs at which trials are compared: where they pause and are promoted, or by more than one value."""

import math
import zlib
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Sequence

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config import SearchSpace
from cdn_tune.tuning.study.filtered_study import StoredStudy
from cdn_tune.tuning.study.ranking import PAUSED, PROMOTED, front_ranks, is_paused, own

COMPARED = "compared"  # user attribute f"{COMPARED}:{step}": what a trial is compared by, besides its value
_Rung = tuple[int, int]  # what it takes to come there, in the unit of early stopping, and its bracket


class Rungs:
    """The rungs of successive halving, and the trials that have come to each; all follows from the record.

    Of the trials at a rung the best 1/`reduction_factor` go on. They are ordered by their value there, or by the
    non-dominated rank of several objectives. Of several `metrics` a trial has to be among the best in every one
    (`combine: any`), or in one of them (`all`). A trial belongs to the bracket of Hyperband to which Optuna's pruner
    would assign it.

    Args:
        space: What is searched.
        longest: The longest trial, in the unit of early stopping; needed by rules of several brackets.
        study: Holds the trials, and is told what is decided.

    Attributes:
        decide: Whether they do; else Optuna's pruners do, by one value, no trial is paused, and no rung holds any.
    """

    def __init__(self, space: SearchSpace, longest: int | None, study: StoredStudy) -> None:
        config = space.early_stopping
        self._pauses = config.mode == "promote"
        self.decide = bool(config.row.brackets) and (self._pauses or bool(config.metrics) or len(space.objectives) > 1)
        self._least, self._factor, self._combine = config.least, config.reduction_factor, config.combine
        self._study = study
        # A metric is better the higher it is, and recorded with the value; so are objectives, by their directions.
        self._signs = [1.0] * len(config.metrics)
        if not config.metrics and len(study.directions) > 1:
            self._signs = [1.0 if direction == StudyDirection.MAXIMIZE else -1.0 for direction in study.directions]
        self._by_front = not config.metrics
        count = brackets(config.least, longest or 0, self._factor) if config.row.brackets == "all" else 1
        self._brackets = Brackets(count, self._factor)
        self._values: dict[_Rung, dict[int, list[float]]] = {}
        self._orders: dict[_Rung, list[tuple[float, int]]] = {}  # best first; of one value, kept up as trials come
        self._reached: dict[int, list[_Rung]] = {}
        self._paused: dict[_Rung, set[int]] = defaultdict(set)  # trials that have left their slots
        for trial in own(study.get_trials(deepcopy=False)) if self.decide else ():
            if trial.state not in (TrialState.FAIL, TrialState.WAITING):
                self._add(trial)
                self.rest(trial)

    def note_objectives(self, trial: FrozenTrial, step: int, values: Iterable[float | None]) -> None:
        """Records the objectives of a trial that comes to a rung at a step, where all of them are compared there."""
        if self.decide and self._signs and self._by_front and None not in (values := list(values)):
            before = self._count(trial.number, max(trial.intermediate_values, default=0))
            if self._count(trial.number, step) > before:
                self._study.set_attributes(trial.number, {f"{COMPARED}:{step}": values})

    def lags(self, number: int, step: int, is_last: bool) -> bool:
        """Decides once for each rung whether a trial that has reported a step goes on; returns whether it does not.

        One that is at its end is compared with others, and goes on. A process that was killed between a report and its
        decision is made up for when the report comes again.
        """
        trial = self._study.trial(number)
        self._add(trial)
        passed = self._count(number, step)
        if is_last or step < max(trial.intermediate_values) or passed <= trial.user_attrs.get(PROMOTED, 0):
            return False
        goes_on = self._is_best(number, least=0 if self._pauses else 1)
        if goes_on or self._pauses:
            self._study.set_attributes(number, {PROMOTED if goes_on else PAUSED: passed})
        return not goes_on

    def promote(self, least: int = 0) -> int | None:
        """Returns a paused trial that goes on from its rung, recorded as promoted; see `promotable`."""
        if (number := self.promotable(least)) is not None:
            self._study.set_attributes(number, {PROMOTED: self._study.trial(number).user_attrs[PAUSED]})
            self.leave(number)
        return number

    def _count(self, number: int, step: int) -> int:
        """Returns at how many rungs of its bracket a trial has been at a step."""
        bracket, count = self._bracket(number), 0
        while self._least * self._factor ** (bracket + count) <= step:
            count += 1
        return count

    def _add(self, trial: FrozenTrial) -> None:
        """Adds a trial to the rungs that it has come to."""
        reached = self._reached.setdefault(trial.number, [])
        count = self._count(trial.number, max(trial.intermediate_values, default=0))
        if len(reached) == count:
            return
        bracket, steps = self._bracket(trial.number), sorted(trial.intermediate_values)
        while len(reached) < count:
            resource = self._least * self._factor ** (bracket + len(reached))
            rung = (resource, bracket)
            reached.append(rung)
            values = self._compared(trial, steps[bisect_left(steps, resource)])
            if values is not None:
                self._insert(rung, trial.number, values)

    def remove(self, number: int) -> None:
        """Removes a trial that has failed: it is compared with no other."""
        self.leave(number)
        for rung in self._reached.pop(number, ()):
            if self._values.get(rung, {}).pop(number, None) is not None:
                self._orders.pop(rung, None)

    def _is_best(self, number: int, least: int) -> bool:
        """Returns whether a trial is among those that go on from the last rung that it has come to.

        Args:
            number: The trial.
            least: So many go on in any case.
        """
        rung = self._reached[number][-1]
        return number not in self._values.get(rung, {}) or number in self._going_on(rung, least)

    def rest(self, trial: FrozenTrial) -> None:
        """Records that a trial has left its slot; it can be promoted if it is paused."""
        if is_paused(trial) and (reached := self._reached.get(trial.number)):
            self._paused[reached[-1]].add(trial.number)

    def promotable(self, least: int = 0) -> int | None:
        """Returns the best paused trial of the highest rung from which one may go on; None if there is none.

        Args:
            least: So many go on from each rung in any case.
        """
        for rung in sorted((rung for rung, paused in self._paused.items() if paused), reverse=True):
            for number in self._going_on(rung, least):
                if number in self._paused[rung]:
                    return number
        return None

    def leave(self, number: int) -> None:
        """Records that a paused trial goes on, or has ended."""
        for rung in self._reached.get(number, ()):
            self._paused[rung].discard(number)

    def _bracket(self, number: int) -> int:
        return self._brackets.of(self._study.study_name, number)

    def _compared(self, trial: FrozenTrial, step: int) -> list[float] | None:
        """Returns what a trial is compared by, the greater the better; None if that is on no record."""
        held = trial.user_attrs.get(f"{COMPARED}:{step}") if self._signs else [trial.intermediate_values[step]]
        if held is None or len(held) != max(len(self._signs), 1):
            return None
        found = [sign * value for sign, value in zip(self._signs or [1.0], held, strict=True)]
        return [value if math.isfinite(value) else -math.inf for value in found]

    def _insert(self, rung: _Rung, number: int, values: list[float]) -> None:
        self._values.setdefault(rung, {})[number] = values
        if self._signs:
            self._orders.pop(rung, None)
        elif rung in self._orders:
            insort(self._orders[rung], (-values[0], number))

    def _going_on(self, rung: _Rung, least: int) -> list[int]:
        """Returns the trials that go on from a rung, best first."""
        if rung not in self._orders:
            self._orders[rung] = self._order(self._values.get(rung, {}))
        order = self._orders[rung]
        quota = max(len(order) // self._factor, least)
        if self._signs and not self._by_front:
            quota = max(bisect_left(order, (float(quota),)), least)  # whoever has a rank below it
        return [number for _, number in order[:quota]]

    def _order(self, held: dict[int, list[float]]) -> list[tuple[float, int]]:
        """Returns the trials of a rung, best first, by what they are ordered by."""
        if not self._signs:
            return sorted((-values[0], number) for number, values in held.items())
        costs = [[-value for value in values] for values in held.values()]
        if self._by_front:
            ranks: Sequence[int] = front_ranks(costs)
        else:
            columns = [sorted(column) for column in zip(*costs, strict=True)]
            worst = max if self._combine == "any" else min
            ranks = [worst(map(bisect_left, columns, point)) for point in costs]
        order = sorted(zip(ranks, costs, held, strict=True))
        return [(float(rank), number) for rank, _, number in order]


class Brackets:
    """The brackets of Hyperband: which one a trial belongs to, as Optuna's pruner assigns it.

    Args:
        count: How many there are.
        factor: By how much a rung has fewer trials than the one before.
    """

    def __init__(self, count: int, factor: int) -> None:
        self._shares = [math.ceil(count * factor**s / (s + 1)) for s in reversed(range(count))]

    def of(self, study_name: str, number: int) -> int:
        """Returns the bracket of a trial, 0 for the one whose first rung comes first."""
        place = zlib.crc32(f"{study_name}_{number}".encode()) % sum(self._shares)
        bracket = 0
        while place >= self._shares[bracket]:
            place -= self._shares[bracket]
            bracket += 1
        return bracket


def brackets(least: int, longest: int, factor: int) -> int:
    """Returns how many brackets of Hyperband fit into a trial, counted in whole numbers; 1 at least."""
    count = 1
    while least * factor**count <= longest:
        count += 1
    return count
