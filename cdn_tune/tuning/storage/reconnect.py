"""A study's database server may restart: operations are repeated until it is back, each taking effect once."""

from __future__ import annotations

import copy
import functools
import json
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.orm import Session

from cdn_tune.errors import ClusterError

PATIENCE_SECONDS = 120.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_TOKEN = "cdn_tune:token"  # noqa: S105 - names a trial's creation, so that it happens once
Result = TypeVar("Result")

# Repeating any of these sets or reads the same again. The creation of a trial and its end are dealt with below.
_REPEATABLE = (
    "create_new_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "_set_trial_param",
    "get_trial_id_from_study_id_trial_number",
    "_get_best_trial_id",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial",
    "_get_trials",
)


class ReconnectingStorage(RDBStorage):
    """Optuna's storage in a database server, which outlasts the loss of its connection.

    The answer to a commit may be lost, too: then the operation has taken effect and is repeated none the less. A trial
    is therefore created with a token, and one that has it already is not created again.

    Args:
        url: SQLAlchemy's URL.
        shown: The URL without its password, for messages.
        patience: Seconds that the server may be away.
        **options: As of `RDBStorage`.
    """

    def __init__(self, url: str, shown: str, patience: float = PATIENCE_SECONDS, **options: Any) -> None:
        self.shown, self.patience = shown, patience
        self._tried: set[str] = set()
        super().__init__(url, **options)

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        template = _running() if template_trial is None else copy.deepcopy(template_trial)
        token = template.system_attrs.setdefault(_TOKEN, uuid.uuid4().hex)
        try:
            return self.lasting(lambda: RDBStorage._create_new_trial(self, study_id, template))
        finally:
            self._tried.discard(token)

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        """Called within the transaction that holds the study's lock, once per attempt."""
        token = template_trial.system_attrs[_TOKEN] if template_trial else ""
        if token in self._tried:
            held = models.TrialSystemAttributeModel
            found = session.query(held).filter(held.key == _TOKEN, held.value_json == json.dumps(token)).one_or_none()
            if found is not None:
                return models.TrialModel.find_or_raise_by_id(int(found.trial_id), session)
        self._tried.add(token)
        return super()._get_prepared_new_trial(study_id, template_trial, session)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        """As `RDBStorage`; an end that was recorded before its answer was lost is no error."""
        attempts = 0

        def attempt() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)
            except UpdateFinishedTrialError:
                if attempts > 1 and self.get_trial(trial_id).state == state:
                    return True
                raise

        return self.lasting(attempt)

    def lasting(self, operation: Callable[[], Result]) -> Result:
        """Repeats an operation while the server is away.

        Raises:
            ClusterError: If it stays away for longer than `patience`.
        """
        start, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                return operation()
            except (StorageInternalError, SQLAlchemyError) as error:
                lost = _lost(error)
                if lost is None:
                    raise
                if time.monotonic() - start > self.patience:
                    reason = " ".join(str(lost.orig).split())[:160]
                    raise ClusterError(
                        f"storage {self.shown}: has been away for {self.patience:.0f} s ({reason}); start it, and the "
                        "same command goes on"
                    ) from None
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)


def _lost(error: BaseException) -> DBAPIError | None:
    """Returns the error that says the server is away or has been stopped, or None if it says something else."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OperationalError | InterfaceError):
            return found
        if isinstance(found, DBAPIError) and found.connection_invalidated:
            return found
        # Optuna reads trials another way where the first has failed, also on a connection that it has just lost.
        found = found.__context__ if isinstance(found, PendingRollbackError) else found.__cause__
    return None


def _running() -> FrozenTrial:
    """What Optuna creates when it is given no template."""
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=datetime.now(),
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
    )


def _repeated(name: str) -> Callable[..., Any]:
    original = getattr(RDBStorage, name)

    @functools.wraps(original)
    def call(self: ReconnectingStorage, *arguments: Any, **options: Any) -> Any:
        return self.lasting(lambda: original(self, *arguments, **options))

    return call


for _name in _REPEATABLE:
    if _name not in vars(ReconnectingStorage):
        setattr(ReconnectingStorage, _name, _repeated(_name))
