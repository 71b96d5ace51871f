"""The storage of a study that one process writes: trials are read from memory and written through."""

import contextlib
import copy
import json
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.tuning.storage.delegate import DelegatingStorage
from cdn_tune.tuning.study.filtered_study import altered


class WriteThrough(DelegatingStorage):
    """Keeps all trials of a study in memory, as one process at a time writes to a study.

    What is written reaches the storage behind it before it is visible here. Trials are read from that storage when the
    study is first used, and after their state has changed, by which their times are the storage's own. What other
    programs write to the study as a whole is visible at once, what they write to a trial with its next change of state.

    Trials are never altered in place: one that was returned stays as it was. Trials of given states are found without
    going through all.
    """

    def __init__(self, behind: BaseStorage) -> None:
        super().__init__(behind)
        self._studies: dict[str, int] = {}
        self._directions: dict[int, list[StudyDirection]] = {}
        self._study: int | None = None
        self._trials: list[FrozenTrial] = []  # of that study, by number
        self._numbers: dict[int, int] = {}  # by id
        self._ids: dict[int, int] = {}  # by number
        self._in_state: defaultdict[TrialState, set[int]] = defaultdict(set)
        self._changed: set[int] = set()  # numbers, since `changed` was last called

    def changed(self) -> list[FrozenTrial]:
        """Returns the trials that are new or have changed since the last call; one reader of a storage may ask."""
        numbers, self._changed = self._changed, set()
        return [self._trials[number] for number in numbers]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Writes in one piece where the storage behind can; reads all anew if the block raises.

        What a block has written that raises stays in a storage that takes a write at a time.
        """
        try:
            with getattr(self.behind, "transaction", contextlib.nullcontext)():
                yield
        except BaseException:  # a write may have taken effect without having been kept here
            self._forget()
            raise

    def get_study_id_from_name(self, study_name: str) -> int:
        """Returns a study's id."""
        if study_name not in self._studies:
            self._studies[study_name] = self.behind.get_study_id_from_name(study_name)
        return self._studies[study_name]

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Returns a study's directions, which never change."""
        if study_id not in self._directions:
            self._directions[study_id] = self.behind.get_study_directions(study_id)
        return self._directions[study_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Returns the trials by number; not copied unless asked."""
        trials = self._of(study_id)
        if states is None:
            found = list(trials)
        else:
            numbers = (number for state, held in self._in_state.items() if state in states for number in held)
            found = [trials[number] for number in sorted(numbers)]
        return copy.deepcopy(found) if deepcopy else found

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Returns a trial."""
        if trial_id not in self._numbers:
            trial: FrozenTrial = self.behind.get_trial(trial_id)
            if trial.number >= len(self._trials):  # none of those held here
                return trial
            self._index(trial_id, trial.number)
        return self._trials[self._numbers[trial_id]]

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Returns a trial's id."""
        self._of(study_id)
        if trial_number not in self._ids:
            trial_id = self.behind.get_trial_id_from_study_id_trial_number(study_id, trial_number)
            self._index(trial_id, trial_number)
        return self._ids[trial_number]

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Creates a trial and returns its id."""
        trials = self._of(study_id)
        trial_id: int = self.behind.create_new_trial(study_id, template_trial)
        trial = self.behind.get_trial(trial_id)
        if trial.number == len(trials):
            self._put(trial)
            self._index(trial_id, trial.number)
        else:  # another program has created one, too
            self._forget()
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Records a sampled value."""
        self.behind.set_trial_param(trial_id, param_name, param_value_internal, distribution)
        trial = self.get_trial(trial_id)
        params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
        self._keep(trial_id, params=params, distributions={**trial.distributions, param_name: distribution})

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Records a trial's state and values; returns whether this has changed it."""
        changed: bool = self.behind.set_trial_state_values(trial_id, state, values)
        trial = self.behind.get_trial(trial_id)
        if trial.number < len(self._trials):
            self._put(trial)
        return changed

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Records a reported value."""
        self.behind.set_trial_intermediate_value(trial_id, step, intermediate_value)
        held = self.get_trial(trial_id).intermediate_values
        self._keep(trial_id, intermediate_values={**held, step: intermediate_value})

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Records a user attribute."""
        self.behind.set_trial_user_attr(trial_id, key, value)
        self._keep(trial_id, user_attrs={**self.get_trial(trial_id).user_attrs, key: _as_read(value)})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Records an attribute of Optuna's."""
        self.behind.set_trial_system_attr(trial_id, key, value)
        self._keep(trial_id, system_attrs={**self.get_trial(trial_id).system_attrs, key: _as_read(value)})

    def _of(self, study_id: int) -> list[FrozenTrial]:
        """Returns the trials held, those of this study from now on."""
        if study_id != self._study:
            self._forget()
            trials = self.behind.get_all_trials(study_id, deepcopy=False)
            self._trials, self._study = sorted(trials, key=lambda trial: trial.number), study_id
            for place, trial in enumerate(self._trials):
                self._in_state[trial.state].add(place)
                self._changed.add(place)
        return self._trials

    def _index(self, trial_id: int, number: int) -> None:
        self._numbers[trial_id], self._ids[number] = number, trial_id

    def _keep(self, trial_id: int, **attributes: Any) -> None:
        trial = self.get_trial(trial_id)
        if trial_id in self._numbers:
            self._put(altered(trial, **attributes))

    def _put(self, trial: FrozenTrial) -> None:
        """Keeps a trial, new or altered, in its place."""
        number = trial.number
        if number == len(self._trials):
            self._trials.append(trial)
        else:
            self._in_state[self._trials[number].state].discard(number)
            self._trials[number] = trial
        self._in_state[trial.state].add(number)
        self._changed.add(number)

    def _forget(self) -> None:
        self._study, self._trials, self._numbers, self._ids = None, [], {}, {}
        self._in_state, self._changed = defaultdict(set), set()


class Ordered:
    """The trials of a study in an order, which is kept up as they change: going through all takes longer than deciding.

    Args:
        storage: Holds them; nothing else may call its `changed`.
        place: Returns a trial's place in the order, the least first; None for one that has none.
    """

    def __init__(self, storage: WriteThrough, place: Callable[[FrozenTrial], tuple[float, ...] | None]) -> None:
        self._storage, self._place = storage, place
        self._trials: dict[int, FrozenTrial] = {}  # by number
        self._places: dict[int, tuple[float, ...]] = {}
        self._order: list[tuple[tuple[float, ...], int]] = []

    def first(self, count: int) -> list[FrozenTrial]:
        """Returns so many trials, as they are recorded now; of equals, the earlier."""
        for trial in self._storage.changed():
            number, place = trial.number, self._place(trial)
            if (held := self._places.pop(number, None)) is not None:
                del self._order[bisect_left(self._order, (held, number))]
            if place is not None:
                self._places[number], self._trials[number] = place, trial
                insort(self._order, (place, number))
        return [self._trials[number] for _, number in self._order[:count]]


def _as_read(value: Any) -> Any:
    """Returns an attribute as the storage returns it."""
    if type(value) in (str, int, float):
        return value
    return json.loads(json.dumps(value))
