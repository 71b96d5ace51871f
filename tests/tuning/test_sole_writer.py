"""The storage of a study's only writer: what is read from memory is what is on record; transactions hold together."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from cdn_tune.tuning.storage.open import open_storage
from cdn_tune.tuning.storage.write_through import FileStorage, SoleWriter


@pytest.fixture(params=["sqlite", "journal", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> SoleWriter:
    """A storage of each kind."""
    url = request.param if request.param == "memory" else f"{request.param}:///{tmp_path}/study"
    return SoleWriter(open_storage(url))


@pytest.fixture
def file(tmp_path: Path) -> SoleWriter:
    """A storage in a SQLite file."""
    return SoleWriter(open_storage(f"sqlite:///{tmp_path}/study.db"))


def new_study(storage: SoleWriter) -> optuna.Study:
    """Returns an empty study."""
    return optuna.create_study(storage=storage, study_name="s", sampler=optuna.samplers.RandomSampler(seed=0))


def ask(study: optuna.Study) -> optuna.Trial:
    """Asks for a trial of two parameters."""
    trial = study.ask()
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    trial.suggest_categorical("pool", ["mean", "attention", None])
    return trial


def fail_in_between(storage: SoleWriter, study: optuna.Study) -> None:
    """Raises in a transaction."""
    with storage.transaction():
        ask(study)
        raise RuntimeError("in between")


def undo_half_way(storage: SoleWriter, file: FileStorage, study: optuna.Study) -> None:
    """Undoes a transaction within it, as Optuna does when two writers set the same."""
    with storage.transaction():
        ask(study)
        file._sessions().rollback()


def test_memory_and_record_are_equal_after_everything(storage: SoleWriter) -> None:
    study = new_study(storage)
    study.enqueue_trial({"lr": 0.01}, user_attrs={"retry_of": 0})
    for number in range(4):
        with storage.transaction():
            trial = ask(study)
            storage.set_trial_user_attrs(trial._trial_id, {"segments": [["node", 1.5]], "val": {"R1@0.5": 0.25}})
            storage.set_trial_user_attrs(trial._trial_id, {"val": {"R1@0.5": 0.5}, "epoch": number})
            storage.set_trial_system_attr(trial._trial_id, "constraints:memory", -1.0)
            storage.set_trial_intermediate_value(trial._trial_id, 1, 0.5)
            storage.set_trial_intermediate_value(trial._trial_id, 2, 0.75)
    study.tell(0, 0.75)
    study.tell(1, state=TrialState.PRUNED)
    study.tell(2, state=TrialState.FAIL)
    held, recorded = storage.get_all_trials(study._study_id), storage.backend.get_all_trials(study._study_id)
    assert held == recorded
    assert [trial.state for trial in held] == [
        TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
    ]  # fmt: skip
    assert held[3].user_attrs == {"segments": [["node", 1.5]], "val": {"R1@0.5": 0.5}, "epoch": 3}
    assert study.get_trials(states=[TrialState.RUNNING]) == [held[3]]
    assert SoleWriter(storage.backend).get_all_trials(study._study_id) == held


def test_what_was_handed_out_stays_as_it_was(storage: SoleWriter) -> None:
    study = new_study(storage)
    trial_id = ask(study)._trial_id
    before = storage.get_trial(trial_id)
    storage.set_trial_intermediate_value(trial_id, 1, 0.5)
    storage.set_trial_user_attrs(trial_id, {"epoch": 1})
    study.tell(0, 1.0)
    assert (before.state, before.intermediate_values, before.user_attrs) == (TrialState.RUNNING, {}, {})
    copied = storage.get_all_trials(study._study_id)[0]
    copied.user_attrs["epoch"] = 2
    assert storage.get_trial(trial_id).user_attrs == {"epoch": 1}


def test_an_ended_trial_takes_no_more_notes(storage: SoleWriter) -> None:
    study = new_study(storage)
    trial_id = ask(study)._trial_id
    study.tell(0, 1.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_user_attrs(trial_id, {"epoch": 1})
    assert storage.get_trial(trial_id).user_attrs == {}


def test_a_block_that_raises_leaves_nothing(file: SoleWriter) -> None:
    study = new_study(file)
    with pytest.raises(RuntimeError, match="in between"):
        fail_in_between(file, study)
    assert file.get_all_trials(study._study_id) == []
    with file.transaction():
        ask(study)
    assert [trial.number for trial in file.backend.get_all_trials(study._study_id)] == [0]


def test_nothing_of_a_transaction_is_seen_before_its_end(file: SoleWriter, tmp_path: Path) -> None:
    study = new_study(file)

    def recorded() -> int:
        connection = sqlite3.connect(tmp_path / "study.db")
        try:
            return int(connection.execute("select count(*) from trial_params").fetchone()[0])
        finally:
            connection.close()

    with file.transaction():
        ask(study)
        with file.transaction():  # one within another is part of it
            ask(study)
        assert recorded() == 0
    assert recorded() == 4


def test_a_transaction_undone_half_way_is_told(file: SoleWriter) -> None:
    study = new_study(file)
    assert isinstance(file.file, FileStorage)
    with pytest.raises(StorageInternalError, match="undone"):
        undo_half_way(file, file.file, study)
    assert file.get_all_trials(study._study_id) == []
