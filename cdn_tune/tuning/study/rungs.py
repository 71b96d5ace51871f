"""Successive halving: the rungs at which trials are compared, to be stopped, or paused and promoted."""

import math
import zlib
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Sequence

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config import SearchSpace
from cdn_tune.training.reports import rungs
from cdn_tune.tuning.study.filtered_study import StoredStudy
from cdn_tune.tuning.study.ranking import PAUSED, PROMOTED, front_ranks, is_paused, own

COMPARED = "compared"  # user attribute f"{COMPARED}:{step}": what a trial is compared by, besides its value
_COME_TO = "completed_rung_"  # prefix of the attributes, one a rung, in which earlier versions kept values there
_Rung = tuple[int, int]  # what it takes to come there, in the unit of early stopping, and its bracket


class Rungs:
    """The rungs of successive halving, and the trials that have come to each; all follows from the record.

    Of the trials at a rung the best 1/`reduction_factor` go on. They are ordered by their value there, or by the
    non-dominated rank of several objectives. Of several `metrics` a trial has to be among the best in every one
    (`combine: any`), or in one of them (`all`). A trial belongs to the bracket of Hyperband to which Optuna's pruner
    would assign it.

    Where trials are stopped, a trial is compared at each rung that a report brings it to in turn, until it is not among
    the best, and counts at no later one; by value alone it is decided as by Optuna's pruners. Where trials pause, it is
    compared at the last of these rungs, and counts at all. This run's own trials count that have not failed.

    Args:
        space: What is searched.
        longest: The longest trial, in the unit of early stopping; needed by rules of several brackets.
        study: Holds the trials, and is told what is decided.

    Attributes:
        decide: Whether the stopping rule has rungs; else none holds any trial.

    Raises:
        ValueError: If the rule needs the length of a trial and it is unknown.
    """

    def __init__(self, space: SearchSpace, longest: int | None, study: StoredStudy) -> None:
        config = space.early_stopping
        self.decide = bool(config.row.brackets)
        self._pauses = config.mode == "promote"
        self._least, self._factor, self._combine = config.least, config.reduction_factor, config.combine
        self._study = study
        self._by_front = not config.metrics and len(space.objectives) > 1
        self._by_value = not config.metrics and not self._by_front
        # A metric is better the higher it is, and recorded with the value; so are objectives, by their directions.
        self._signs = [1.0] * max(len(config.metrics), 1)
        if self._by_front:
            self._signs = [1.0 if direction == StudyDirection.MAXIMIZE else -1.0 for direction in study.directions]
        count = 1
        if config.row.brackets == "all":
            if longest is None:
                raise ValueError(f"{config.name} that counts steps needs those of the longest trial")
            count = brackets(config.least, longest, self._factor)
        self._brackets = Brackets(count, self._factor)
        self._values: defaultdict[_Rung, dict[int, list[float]]] = defaultdict(dict)
        self._orders: dict[_Rung, list[tuple[float, int]]] = {}  # best first; of one value, kept up as trials come
        self._reached: dict[int, int] = {}  # at how many rungs a trial counts
        self._paused: dict[_Rung, set[int]] = defaultdict(set)  # trials that have left their slots
        for trial in own(study.get_trials(deepcopy=False)) if self.decide else ():
            if trial.state not in (TrialState.FAIL, TrialState.WAITING):
                count = self._count(trial.number, max(trial.intermediate_values, default=0))
                counts_at_all = self._pauses or trial.state == TrialState.COMPLETE
                self._add(trial, count if counts_at_all else min(count, self._passed(trial) + 1))
                self.rest(trial)

    def note_objectives(self, trial: FrozenTrial, step: int, values: Iterable[float | None]) -> None:
        """Records the objectives of a trial that comes to a rung at a step, where all of them are compared there."""
        if self.decide and self._by_front and None not in (values := list(values)):
            before = self._count(trial.number, max(trial.intermediate_values, default=0))
            if self._count(trial.number, step) > before:
                self._study.set_attributes(trial.number, {f"{COMPARED}:{step}": values})

    def lags(self, number: int, step: int, is_last: bool) -> bool:
        """Decides once for each rung whether a trial that has reported a step goes on; returns whether it does not.

        One that is at its end is compared with others, and goes on. A process that was killed between a report and its
        decision is made up for when the report comes again.
        """
        trial = self._study.trial(number)
        if step < max(trial.intermediate_values):
            return False
        count = self._count(number, step)
        if is_last:
            self._add(trial, count)
            return False
        passed = before = max(self._passed(trial), count - 1 if self._pauses else 0)
        while passed < count and self._is_best(trial, passed):
            passed += 1
        if passed > before:
            self._study.set_attributes(number, {PROMOTED: passed})
        elif passed < count and self._pauses:
            self._study.set_attributes(number, {PAUSED: count})
        return passed < count

    def promote(self, least: int = 0) -> int | None:
        """Returns a paused trial that goes on from its rung, recorded as promoted; see `promotable`."""
        if (number := self.promotable(least)) is not None:
            self._study.set_attributes(number, {PROMOTED: self._study.trial(number).user_attrs[PAUSED]})
            self.leave(number)
        return number

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

    def first(self, number: int) -> int:
        """Returns where a trial's first rung lies; each further one is `reduction_factor` times as far."""
        return self._rung(number, 0)[0]

    def rest(self, trial: FrozenTrial) -> None:
        """Records that a trial has left its slot; it can be promoted if it is paused."""
        if is_paused(trial) and (reached := self._reached.get(trial.number)):
            self._paused[self._rung(trial.number, reached - 1)].add(trial.number)

    def leave(self, number: int) -> None:
        """Records that a paused trial goes on, or has ended."""
        for place in range(self._reached.get(number, 0)):
            self._paused[self._rung(number, place)].discard(number)

    def remove(self, number: int) -> None:
        """Removes a trial that has failed: it is compared with no other."""
        self.leave(number)
        for place in range(self._reached.pop(number, 0)):
            rung = self._rung(number, place)
            values = self._values[rung].pop(number, None)
            if values is not None and self._by_value:
                order = self._orders[rung]
                del order[bisect_left(order, (-values[0], number))]
            elif values is not None:
                self._orders.pop(rung, None)

    def _rung(self, number: int, place: int) -> _Rung:
        """Returns a rung of a trial's bracket by its place, from 0."""
        bracket = self._brackets.of(self._study.study_name, number)
        return self._least * self._factor ** (bracket + place), bracket

    def _count(self, number: int, step: int) -> int:
        """Returns at how many rungs of its bracket a trial has been at a step."""
        return rungs(step, self.first(number), self._factor)

    def _passed(self, trial: FrozenTrial) -> int:
        """Returns past how many rungs a trial was let; those before its last report, in any case."""
        before = sorted([0, 0, *trial.intermediate_values])[-2]
        # Earlier versions recorded the rungs that a trial came to: it was let past them, or stopped at the last one.
        come = sum(key.startswith(_COME_TO) for key in trial.system_attrs) - (trial.state == TrialState.PRUNED)
        recorded: int = trial.user_attrs.get(PROMOTED, 0)
        return max(self._count(trial.number, before), recorded, come)

    def _add(self, trial: FrozenTrial, count: int) -> None:
        """Has a trial count at so many rungs, in their order; where its value is NaN, it does not."""
        number = trial.number
        for place in range(self._reached.get(number, 0), count):
            self._reached[number] = place + 1
            rung = self._rung(number, place)
            values = self._compared(trial, rung)
            if values is None or any(map(math.isnan, values)):
                continue
            self._values[rung][number] = values
            if self._by_value:
                insort(self._orders.setdefault(rung, []), (-values[0], number))
            else:
                self._orders.pop(rung, None)

    def _compared(self, trial: FrozenTrial, rung: _Rung) -> list[float] | None:
        """Returns what a trial is compared by at a rung, the greater the better; None if that is on no record."""
        steps = sorted(trial.intermediate_values)
        step = steps[bisect_left(steps, rung[0])]
        held = [trial.intermediate_values[step]] if self._by_value else trial.user_attrs.get(f"{COMPARED}:{step}")
        if held is None or len(held) != len(self._signs):
            return None
        return [sign * value for sign, value in zip(self._signs, held, strict=True)]

    def _is_best(self, trial: FrozenTrial, place: int) -> bool:
        """Has a trial count at a rung; returns whether it is among those that go on, or is on no record there."""
        self._add(trial, place + 1)
        rung = self._rung(trial.number, place)
        values = self._compared(trial, rung)
        if values is None:
            return True
        if self._pauses or not self._by_value:
            return trial.number in self._going_on(rung, least=0 if self._pauses else 1)
        order = self._orders.get(rung, [])  # empty if the only value there is NaN
        return bool(order) and -values[0] <= order[max(len(order) // self._factor, 1) - 1][0]

    def _going_on(self, rung: _Rung, least: int) -> list[int]:
        """Returns the trials that go on from a rung, best first."""
        if rung not in self._orders:
            self._orders[rung] = self._order(self._values[rung])
        order = self._orders[rung]
        quota = max(len(order) // self._factor, least)
        if not self._by_value and not self._by_front:
            quota = max(bisect_left(order, (float(quota),)), least)  # whoever has a rank below it
        return [number for _, number in order[:quota]]

    def _order(self, held: dict[int, list[float]]) -> list[tuple[float, int]]:
        """Returns the trials of a rung, best first, by their ranks."""
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
