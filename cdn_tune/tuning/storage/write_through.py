"""A study's storage as its only writer uses it: read from memory, written through, a decision at a time."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, cast

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from cdn_tune.tuning.study.filtered_study import altered


class SoleWriter(BaseStorage):
    """Keeps all trials of a study in memory, as one process at a time writes to a study.

    What is written reaches the storage behind it before it is seen here. Trials are read from that storage when the
    study is first looked at, and after their state has changed, by which their times are the storage's own. What others
    write to the study as a whole is seen at once, what they write to a trial with its next change of state.

    Trials are never altered in place: one that was handed out stays as it was.

    Args:
        backend: The storage behind it.
    """

    def __init__(self, backend: BaseStorage) -> None:
        self.file = backend if isinstance(backend, FileStorage) else None
        self._behind = backend
        self.backend = get_storage(backend)  # which spares a database some queries
        self._trials: dict[int, dict[int, FrozenTrial]] = {}  # by study, then by number
        self._places: dict[int, tuple[int, int]] = {}  # study and number of a trial, by its id

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Holds what is written in the block together, where the storage can: all of it is kept, or nothing."""
        try:
            with self.file.transaction() if self.file else contextlib.nullcontext():
                yield
        except BaseException:  # what is in memory may never have been kept
            self.backend = get_storage(self._behind)
            self._trials.clear()
            self._places.clear()
            raise

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Returns the trials by number; not copied unless asked."""
        trials = [trial for trial in self._of(study_id).values() if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Returns a trial."""
        place = self._places.get(trial_id)
        return self.backend.get_trial(trial_id) if place is None else self._trials[place[0]][place[1]]

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Returns a trial's id."""
        return self._of(study_id)[trial_number]._trial_id

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Creates a trial."""
        self._of(study_id)
        trial_id = self.backend.create_new_trial(study_id, template_trial)
        trial = self.backend.get_trial(trial_id)
        self._places[trial_id] = study_id, trial.number
        self._keep(trial)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Records a sampled value."""
        self.backend.set_trial_param(trial_id, param_name, param_value_internal, distribution)
        trial = self.get_trial(trial_id)
        params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
        self._keep(altered(trial, params=params, distributions={**trial.distributions, param_name: distribution}))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Records how a trial stands."""
        done = self.backend.set_trial_state_values(trial_id, state, values)
        self._keep(self.backend.get_trial(trial_id))
        return done

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Records what a trial has reached."""
        self.backend.set_trial_intermediate_value(trial_id, step, intermediate_value)
        trial = self.get_trial(trial_id)
        self._keep(altered(trial, intermediate_values={**trial.intermediate_values, step: intermediate_value}))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Records a note of ours."""
        self.backend.set_trial_user_attr(trial_id, key, value)
        trial = self.get_trial(trial_id)
        self._keep(altered(trial, user_attrs={**trial.user_attrs, key: _as_read(value)}))

    def set_trial_user_attrs(self, trial_id: int, notes: Mapping[str, Any]) -> None:
        """Records notes of ours, in one statement where the storage can."""
        if self.file is None:
            for key, value in notes.items():
                self.set_trial_user_attr(trial_id, key, value)
        elif notes:
            self.file.set_trial_user_attrs(trial_id, notes)
            trial = self.get_trial(trial_id)
            self._keep(altered(trial, user_attrs={**trial.user_attrs, **_as_read(dict(notes))}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Records a note of Optuna's."""
        self.backend.set_trial_system_attr(trial_id, key, value)
        trial = self.get_trial(trial_id)
        self._keep(altered(trial, system_attrs={**trial.system_attrs, key: _as_read(value)}))

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Creates a study."""
        return self.backend.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        """Deletes a study."""
        self.backend.delete_study(study_id)
        for trial in self._trials.pop(study_id, {}).values():
            del self._places[trial._trial_id]

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Records a note of ours on a study."""
        self.backend.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Records a note of Optuna's on a study."""
        self.backend.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        """Returns a study's id."""
        return self.backend.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """Returns a study's name."""
        return self.backend.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Returns a study's directions."""
        return self.backend.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Returns our notes on a study."""
        return self.backend.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Returns Optuna's notes on a study."""
        return self.backend.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[Any]:
        """Returns all studies."""
        return self.backend.get_all_studies()

    def remove_session(self) -> None:
        """Closes connections."""
        self.backend.remove_session()

    def _of(self, study_id: int) -> dict[int, FrozenTrial]:
        if study_id not in self._trials:
            trials = sorted(self.backend.get_all_trials(study_id, deepcopy=False), key=lambda trial: trial.number)
            self._trials[study_id] = {trial.number: trial for trial in trials}
            self._places |= {trial._trial_id: (study_id, trial.number) for trial in trials}
        return self._trials[study_id]

    def _keep(self, trial: FrozenTrial) -> None:
        place = self._places.get(trial._trial_id)
        if place is not None:
            self._trials[place[0]][place[1]] = trial


class FileStorage(RDBStorage):
    """Optuna's storage in a SQLite file, several of whose operations can be one transaction.

    Every operation of Optuna's ends with the closing of its session, which costs a flush of the disk.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._hold()

    def __getstate__(self) -> dict[Any, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "_sessions"}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._hold()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Makes one transaction of what is written in the block; nothing of it is kept if the block raises.

        Raises:
            StorageInternalError: If it cannot be written.
        """
        session = self._sessions()
        if session.is_held:
            yield
            return
        session.is_held, session.is_broken = True, False
        try:
            yield
            session.is_held = False
            if session.is_broken:
                raise StorageInternalError("a transaction of the study was undone half-way")
            session.commit()
        except SQLAlchemyError as error:
            raise StorageInternalError("the study cannot be written") from error
        finally:
            session.is_held = False
            session.close()  # undoes what is not committed

    def set_trial_user_attrs(self, trial_id: int, notes: Mapping[str, Any]) -> None:
        """Sets user attributes of a trial that has not ended, in one statement."""
        table = models.TrialUserAttributeModel
        rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in notes.items()]
        statement = insert(table).values(rows)
        changed = {"value_json": statement.excluded.value_json}
        with self.transaction():
            session = self._sessions()
            state = cast(TrialState, models.TrialModel.find_or_raise_by_id(trial_id, session).state)
            self.check_trial_is_updatable(trial_id, state)
            session.execute(statement.on_conflict_do_update(index_elements=[table.trial_id, table.key], set_=changed))

    def _hold(self) -> None:
        self._sessions = scoped_session(sessionmaker(bind=self.engine, class_=_Session))
        self.scoped_session = cast("scoped_session[Session]", self._sessions)


class _Session(Session):
    """A session that, while it is held, neither commits nor forgets its transaction when it is closed."""

    is_held = False
    is_broken = False

    def commit(self) -> None:
        if self.is_held:
            self.flush()
        else:
            super().commit()

    def rollback(self) -> None:
        self.is_broken = self.is_held
        super().rollback()

    def close(self) -> None:
        if self.is_held:
            self.expunge_all()  # as closing does: what is read next is read anew
        else:
            super().close()


def _as_read(value: Any) -> Any:
    """Returns a note as the storage gives it back."""
    return json.loads(json.dumps(value))
