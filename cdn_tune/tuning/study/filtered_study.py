"""An Optuna study with its storage, and views of it for samplers and pruners: chosen trials, chosen directions."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, cast

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from cdn_tune.tuning.storage.delegate import ShowingStorage

CONSTRAINT = "constraints:"  # prefix of the attributes in which Optuna 5 keeps constraints
Show = Callable[[list[FrozenTrial]], list[FrozenTrial]]


class StoredStudy(Study):
    """An existing Optuna study that exposes its storage; trials are addressed by number."""

    def __init__(
        self,
        study_name: str,
        storage: BaseStorage,
        sampler: BaseSampler | None = None,
        pruner: BasePruner | None = None,
    ) -> None:
        super().__init__(study_name, storage, sampler, pruner)
        self.storage = storage
        self.id_in_storage = storage.get_study_id_from_name(study_name)

    def transaction(self) -> AbstractContextManager[None]:
        """Records what the block writes in one piece, where the storage can: all of it or, if it raises, nothing."""
        begin: Callable[[], AbstractContextManager[None]] = getattr(self.storage, "transaction", nullcontext)
        return begin()

    def trial_id(self, number: int) -> int:
        """Returns the storage's id of a trial."""
        return self.storage.get_trial_id_from_study_id_trial_number(self.id_in_storage, number)

    def trial(self, number: int) -> FrozenTrial:
        """Returns a trial as it is recorded now."""
        return self.storage.get_trial(self.trial_id(number))

    def set_attributes(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Records user attributes of a trial."""
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(self.trial_id(number), key, value)

    def set_constraint(self, number: int, name: str, violation: float) -> None:
        """Records by how much a trial breaks a constraint, as `optuna.Trial.set_constraint`; at most 0 if it holds."""
        self.storage.set_trial_system_attr(self.trial_id(number), f"{CONSTRAINT}{name}", violation)

    def report(self, number: int, step: int, value: float) -> None:
        """Records a trial's value at a step."""
        self.storage.set_trial_intermediate_value(self.trial_id(number), step, value)


def stored_study(
    storage: BaseStorage,
    name: str,
    directions: Sequence[Any] = ("maximize",),
    sampler: BaseSampler | None = None,
    pruner: BasePruner | None = None,
) -> StoredStudy:
    """Returns the study of a name, created where the storage has none; directions are Optuna's or their names."""
    optuna.create_study(
        study_name=name,
        storage=storage,
        sampler=sampler,
        pruner=pruner,
        directions=list(directions),
        load_if_exists=True,
    )
    return StoredStudy(name, storage, sampler, pruner)


def seen(study: Study, show: Show, directions: Sequence[StudyDirection] | None = None) -> StoredStudy:
    """Returns a study that shows chosen trials only; what is written to it goes to the study behind it.

    Trials are read once, when they are first needed: a view lasts for one decision.

    Args:
        study: The study behind the view, a `StoredStudy`.
        show: From the study's trials to those that are shown; leaves the study's own unchanged, see :func:`altered`.
        directions: Of the values shown; None for the study's own.
    """
    shown = list(study.directions if directions is None else directions)
    storage = _FilteredStorage(cast(StoredStudy, study), show, shown)
    return StoredStudy(study.study_name, storage, study.sampler, study.pruner)


def violations(trial: FrozenTrial) -> dict[str, float]:
    """Returns by how much a trial breaks each of its constraints, by name; at most 0 for one that holds."""
    held = trial.system_attrs.items()
    return {key.removeprefix(CONSTRAINT): float(value) for key, value in held if key.startswith(CONSTRAINT)}


def altered(trial: FrozenTrial, **attributes: Any) -> FrozenTrial:
    """Returns a copy of a trial with other attributes; what is not given is shared with the trial."""
    changed = object.__new__(type(trial))  # `copy.copy` takes several times as long
    vars(changed).update(vars(trial))
    for name, value in attributes.items():
        setattr(changed, name, value)
    return changed


class _FilteredStorage(ShowingStorage):
    """A storage that shows chosen trials. Optuna's samplers and pruners read all they need through it."""

    def __init__(self, study: StoredStudy, show: Show, directions: list[StudyDirection]) -> None:
        super().__init__(study.storage)
        self._study, self._show, self._directions = study, show, directions

    @cached_property
    def _trials(self) -> list[FrozenTrial]:
        return self._show(self._study.get_trials(deepcopy=False))

    def shown(self) -> list[FrozenTrial]:
        return self._trials

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:  # noqa: ARG002
        return self._directions
