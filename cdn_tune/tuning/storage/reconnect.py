"""Waits for a database server that went away: operations are repeated until it is back, each taking effect once."""

import copy
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError

from cdn_tune.errors import ClusterError
from cdn_tune.tuning.storage.delegate import DelegatingStorage

PATIENCE_SECONDS = 120.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_TOKEN = "cdn_tune:token"  # noqa: S105 - names a trial's creation, so that it happens once
Result = TypeVar("Result")


class ReconnectingStorage(DelegatingStorage):
    """A storage in a database server that survives the loss of the connection: every call is repeated until it returns.

    The answer to a commit may be lost, too: then the operation has taken effect and is repeated none the less. Most
    set or read the same again. A trial is created with a token, and one that has it already is not created again; an
    end, or a start from the queue, that is on record already counts as recorded by this call. The study must have no
    other writer.

    Args:
        behind: Optuna's storage.
        shown: Its URL without the password, for messages.
        patience: Seconds that the server may be away.
        clock: Returns seconds.
        sleep: Waits for seconds.
    """

    def __init__(
        self,
        behind: BaseStorage,
        shown: str,
        patience: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(behind)
        self._shown, self._patience, self._clock, self._sleep = shown, patience, clock, sleep

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method of the storage behind until the server answers."""
        return self._lasting(lambda _: super(ReconnectingStorage, self).call(name, *arguments, **options))

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Creates a trial once and returns its id."""
        running = create_trial(state=TrialState.RUNNING)  # as Optuna's own without a template
        template = running if template_trial is None else copy.deepcopy(template_trial)
        template.system_attrs[_TOKEN] = token = uuid.uuid4().hex

        def create(is_repeated: bool) -> int:
            if is_repeated:
                for trial in reversed(self.behind.get_all_trials(study_id, deepcopy=False)):
                    if trial.system_attrs.get(_TOKEN) == token:
                        return self.behind.get_trial_id_from_study_id_trial_number(study_id, trial.number)
            return self.behind.create_new_trial(study_id, template)

        return self._lasting(create)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        """As `BaseStorage`; a change that was recorded before its answer was lost is no error."""

        def change(is_repeated: bool) -> bool:
            try:
                return self.behind.set_trial_state_values(trial_id, state, values) or is_repeated
            except UpdateFinishedTrialError:
                if is_repeated and self.behind.get_trial(trial_id).state == state:
                    return True
                raise

        return self._lasting(change)

    def _lasting(self, operation: Callable[[bool], Result]) -> Result:
        """Repeats an operation, which takes whether it is repeated, while the server is away.

        Raises:
            ClusterError: If it stays away for longer than the patience.
        """
        start, pause, is_repeated = self._clock(), _FIRST_PAUSE, False
        while True:
            try:
                return operation(is_repeated)
            except (StorageInternalError, SQLAlchemyError) as error:
                lost = _lost(error)
                if lost is None:
                    raise
                if self._clock() - start > self._patience:
                    reason = " ".join(str(lost.orig).split())[:160]
                    raise ClusterError(
                        f"storage {self._shown}: has been away for {self._patience:.0f} s ({reason}); start it, and "
                        "the same command goes on"
                    ) from None
            self._sleep(pause)
            pause, is_repeated = min(2 * pause, _LONGEST_PAUSE), True


def _lost(error: BaseException) -> DBAPIError | None:
    """Returns the error by which the server is away or was stopped, or None if the cause is another."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OperationalError | InterfaceError):
            return found
        if isinstance(found, DBAPIError) and found.connection_invalidated:
            return found
        # Optuna reads trials another way where the first has failed, also on a connection that it has just lost.
        found = found.__context__ if isinstance(found, PendingRollbackError) else found.__cause__
    return None
