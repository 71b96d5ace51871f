"""A search's record as an Optuna study, for Optuna's own analyses and plots; it cannot be written to."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial

from cdn_tune.errors import RunError
from cdn_tune.tuning.results.record import Record, quiet
from cdn_tune.tuning.storage.delegate import ShowingStorage

_WRITES = ("create_", "delete_", "set_")


def recorded_study(record: Record) -> optuna.Study:
    """Returns a study of all entries of a record, as they were when it was read; writing to it is a `RunError`."""
    with quiet():
        return optuna.load_study(study_name=record.space.name, storage=_RecordedStorage(record))


class _RecordedStorage(ShowingStorage):
    """The entries of a record; of the study in memory behind it only directions and attributes are read."""

    def __init__(self, record: Record) -> None:
        super().__init__(InMemoryStorage())
        study = self.behind.create_new_study(record.directions, record.space.name)
        for key, value in record.attributes.items():
            self.behind.set_study_user_attr(study, key, value)
        self._run, self._entries = record.run, record.entries

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method of the study in memory; raises `RunError` if it is one that writes."""
        if name.startswith(_WRITES):
            raise RunError(f"{self._run}: its study is for reading; a search of this run folder goes on with it")
        return super().call(name, *arguments, **options)

    def shown(self) -> Sequence[FrozenTrial]:
        """Returns the entries."""
        return self._entries
