"""The storages of a study's only writer: what is read from memory is what is on record."""

from __future__ import annotations

import random
from pathlib import Path

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from cdn_tune.tuning.storage.delegate import DelegatingStorage
from cdn_tune.tuning.storage.open import open_storage
from cdn_tune.tuning.storage.write_through import Ordered, WriteThrough
from cdn_tune.tuning.study.filtered_study import StoredStudy, stored_study


@pytest.fixture(params=["sqlite", "journal", "memory", "own journal", "own journal in memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> DelegatingStorage:
    """A storage of each kind."""
    if request.param == "memory":
        return WriteThrough(InMemoryStorage())
    if request.param.startswith("own journal"):
        own = open_storage(f"journal:///{tmp_path}/study", sole_writer=True)
        assert isinstance(own, DelegatingStorage)
        return own if request.param == "own journal" else WriteThrough(own)
    return WriteThrough(open_storage(f"{request.param}:///{tmp_path}/study"))


def new_study(storage: DelegatingStorage) -> StoredStudy:
    """Returns an empty study."""
    return stored_study(storage, "s", ["minimize"], optuna.samplers.RandomSampler(seed=0))


def ask(study: StoredStudy) -> int:
    """Asks for a trial of two parameters; returns its number."""
    trial = study.ask()
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    trial.suggest_categorical("pool", ["mean", "attention", None])
    return trial.number


def test_memory_and_record_are_equal_after_everything(storage: DelegatingStorage) -> None:
    study = new_study(storage)
    study.enqueue_trial({"lr": 0.01}, user_attrs={"retry_of": 0})
    for number in range(4):
        with study.transaction():
            assert ask(study) == number
            study.set_attributes(number, {"segments": [["node", 1.5]], "val": {"R1@0.5": 0.25}})
            study.set_attributes(number, {"val": {"R1@0.5": 0.5}, "epoch": number})
            study.set_constraint(number, "memory", -1.0)
            study.report(number, 1, 0.5)
            study.report(number, 2, 0.75)
    study.tell(0, 0.75)
    study.tell(1, state=TrialState.PRUNED)
    study.tell(2, state=TrialState.FAIL)
    held = study.get_trials()
    assert held == storage.behind.get_all_trials(study.id_in_storage)
    assert [trial.state for trial in held] == [
        TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
    ]  # fmt: skip
    assert held[0].params["lr"] == 0.01
    assert held[3].user_attrs == {"segments": [["node", 1.5]], "val": {"R1@0.5": 0.5}, "epoch": 3}
    assert held[3].system_attrs == {"constraints:memory": -1.0}
    assert study.get_trials(states=[TrialState.RUNNING]) == [study.trial(3)] == [held[3]]
    again = new_study(WriteThrough(storage.behind))
    assert again.trial(2) == held[2]
    assert again.get_trials() == held
    again.set_attributes(3, {"epoch": 4})
    assert again.trial(3).user_attrs["epoch"] == 4


def test_what_was_returned_stays_as_it_was(storage: DelegatingStorage) -> None:
    study = new_study(storage)
    before = study.trial(ask(study))
    study.report(0, 1, 0.5)
    study.set_attributes(0, {"epoch": 1})
    study.tell(0, 1.0)
    assert (before.state, before.intermediate_values, before.user_attrs) == (TrialState.RUNNING, {}, {})
    study.get_trials()[0].user_attrs["epoch"] = 2
    assert study.trial(0).user_attrs == {"epoch": 1}


def test_an_ended_trial_takes_no_more_attributes(storage: DelegatingStorage) -> None:
    study = new_study(storage)
    ask(study)
    study.tell(0, 1.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        study.set_attributes(0, {"epoch": 1})
    assert study.trial(0).user_attrs == {}


def test_a_trial_of_another_program_is_found(storage: DelegatingStorage) -> None:
    study = new_study(storage)
    ask(study)
    other = new_study(WriteThrough(storage.behind))
    assert ask(other) == 1
    assert ask(study) == 2
    assert [trial.number for trial in study.get_trials()] == [0, 1, 2]
    assert study.trial(1).params == other.trial(1).params


def test_trials_are_found_by_state(storage: DelegatingStorage) -> None:
    study = new_study(storage)
    states = (None, TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE)
    for state in states * 3:
        number = ask(study)
        if state is not None:
            study.tell(number, 1.0 if state == TrialState.COMPLETE else None, state=state)
    study.enqueue_trial({"lr": 0.01})
    for wanted in ([TrialState.WAITING], [TrialState.RUNNING, TrialState.FAIL], list(TrialState), []):
        found = study.get_trials(states=wanted)
        assert found == [trial for trial in study.get_trials() if trial.state in wanted]
        assert found == storage.behind.get_all_trials(study.id_in_storage, states=wanted)
    assert len(study.get_trials(states=[TrialState.RUNNING])) == 3


def test_a_block_that_raises_is_read_anew(tmp_path: Path) -> None:
    storage = WriteThrough(open_storage(f"journal:///{tmp_path}/study", sole_writer=True))
    study = new_study(storage)
    ask(study)

    def broken() -> None:
        with study.transaction():
            study.tell(0, 1.0)
            ask(study)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING]
    assert study.get_trials() == storage.behind.get_all_trials(study.id_in_storage)
    assert ask(study) == 1


def test_an_order_follows_every_change(storage: DelegatingStorage) -> None:
    """By the first report, the higher the better; trials without one have no place."""
    held = storage if isinstance(storage, WriteThrough) else WriteThrough(storage)
    study = new_study(held)
    order = Ordered(held, lambda trial: tuple(-value for value in list(trial.intermediate_values.values())[:1]) or None)
    draw = random.Random(0)
    for _ in range(60):
        trials = study.get_trials(deepcopy=False)
        running = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
        what = draw.random()
        if what < 0.4 or not running:
            ask(study)
        elif what < 0.8:
            number = draw.choice(running)
            study.report(number, len(study.trial(number).intermediate_values), draw.choice([0.25, 0.5, 0.75]))
        else:
            study.tell(draw.choice(running), state=TrialState.FAIL)
        trials = [trial for trial in study.get_trials() if trial.intermediate_values]
        expected = sorted(trials, key=lambda trial: -trial.intermediate_values[0])
        assert order.first(3) == expected[:3]
    again = WriteThrough(held.behind)
    new_study(again).get_trials()
    assert Ordered(again, order._place).first(99) == order.first(99)
