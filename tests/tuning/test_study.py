"""The study: every trial is on record exactly once, with its best value, whatever happens to the process."""

import pickle
from pathlib import Path

import pytest
from optuna.trial import TrialState

from cdn_tune.config import Float, Int, SearchSpace
from cdn_tune.tuning.ranking import ranking, value_of
from cdn_tune.tuning.study import Study, sqlite_url


def make_space(**more: object) -> SearchSpace:
    parameters = {"optim.lr": Float(low=1e-4, high=1e-1, log=True), "model.map.layers": Int(low=2, high=4)}
    return SearchSpace.model_validate(
        {"name": "s", "experiment": "x", "parameters": parameters, "sampler": {"startup_trials": 2}, **more}
    )


def run(study: Study, limit: int, curves: dict[int, list[float]]) -> None:
    """Plays a search: each trial follows its curve, the pruner may stop it."""
    while (number := study.next(limit)) is not None:
        for epoch, value in enumerate(curves.get(number, [0.1 * number]), start=1):
            if study.report(number, epoch, value, {"best_epoch": epoch}):
                study.prune(number, "lagged")
                break
        study.complete(number)


def test_values_are_the_best_and_states_are_told_apart(tmp_path: Path) -> None:
    study = Study(sqlite_url(tmp_path), make_space(early_stopping={"name": "none"}))
    run(study, 2, {0: [0.1, 0.5, 0.5], 1: [0.3]})
    failed = study.next(4)
    assert failed is not None
    study.fail(failed, "no memory")
    silent = study.next(4)
    assert silent is not None
    study.complete(silent)
    trials = study.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2 + [TrialState.FAIL] * 2
    assert [trial.value for trial in trials[:2]] == [0.5, 0.3]
    assert trials[2].user_attrs["reason"] == "no memory"
    assert "without reporting" in trials[3].user_attrs["reason"]
    assert [trial.number for trial in ranking(trials)] == [0, 1]
    assert study.next(4) is None


def test_pruned_trial_keeps_its_value(tmp_path: Path) -> None:
    study = Study(sqlite_url(tmp_path), make_space(early_stopping={"name": "asha", "reduction_factor": 2}))
    run(study, 4, {n: [0.9 - 0.2 * n, 0.9 - 0.2 * n] for n in range(4)})
    states = [trial.state for trial in study.trials()]
    assert states[0] == TrialState.COMPLETE
    assert TrialState.PRUNED in states
    for trial in study.trials():
        assert trial.value == pytest.approx(0.9 - 0.2 * trial.number)
        assert value_of(trial) == trial.value


def test_median_pruner_waits_for_startup_trials(tmp_path: Path) -> None:
    space = make_space(early_stopping={"name": "median", "startup_trials": 3, "min_resource": 1})
    study = Study(sqlite_url(tmp_path), space)
    run(study, 5, {n: [0.5, 0.5] if n < 3 else [0.1, 0.1] for n in range(5)})
    assert [trial.state for trial in study.trials()] == [TrialState.COMPLETE] * 3 + [TrialState.PRUNED] * 2


def test_a_new_process_takes_up_what_was_running(tmp_path: Path) -> None:
    space = make_space(start_with=[{"optim.lr": 0.01, "model.map.layers": 3}])
    first = Study(sqlite_url(tmp_path), space)
    assert first.next(4) == 0
    assert first.parameters(0) == {"optim.lr": 0.01, "model.map.layers": 3}
    assert first.next(4) == 1
    first.report(1, 1, 0.4, {})
    parameters = first.parameters(1)
    del first  # the process dies

    second = Study(sqlite_url(tmp_path), space)
    assert second.unfinished() == [0, 1]
    assert [second.next(4), second.next(4)] == [0, 1]
    assert second.parameters(1) == parameters
    assert second.report(1, 1, 0.4, {}) is False  # told again after the resume: no second entry
    second.report(1, 2, 0.6, {})
    second.complete(0)
    second.complete(1)
    run(second, 4, {})
    trials = second.trials()
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert trials[1].intermediate_values == {1: 0.4, 2: 0.6}
    assert sum(trial.params == {"optim.lr": 0.01, "model.map.layers": 3} for trial in trials) == 1


def test_telling_twice_changes_nothing(tmp_path: Path) -> None:
    study = Study(sqlite_url(tmp_path), make_space())
    run(study, 1, {0: [0.7]})
    study.fail(0, "late news")
    study.prune(0, "late news")
    study.complete(0)
    assert study.report(0, 9, 0.9, {"x": 1}) is False
    trial = study.trials()[0]
    assert (trial.state, trial.value, trial.user_attrs) == (TrialState.COMPLETE, 0.7, {"best_epoch": 1})


def test_pickles_as_a_view_of_the_same_record(tmp_path: Path) -> None:
    study = Study(sqlite_url(tmp_path), make_space())
    run(study, 2, {})
    again = pickle.loads(pickle.dumps(study))
    assert [trial.params for trial in again.trials()] == [trial.params for trial in study.trials()]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_same_seed_same_parameters(tmp_path: Path, sampler: str) -> None:
    seen = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        study = Study(
            sqlite_url(tmp_path / name), make_space(sampler={"name": sampler, "seed": 3, "startup_trials": 2})
        )
        run(study, 6, {})
        seen.append([trial.params for trial in study.trials()])
    assert seen[0] == seen[1]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_resumed_search_proposes_what_an_uninterrupted_one_would(tmp_path: Path, sampler: str, cut: int) -> None:
    space = make_space(sampler={"name": sampler, "seed": 3, "startup_trials": 4}, early_stopping={"name": "none"})
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = Study(sqlite_url(tmp_path / "whole"), space)
    run(whole, 8, {})
    for limit in (cut, 8):
        resumed = Study(sqlite_url(tmp_path / "cut"), space)  # a new process each time
        run(resumed, limit, {})
    proposed = [trial.params for trial in resumed.trials()]
    assert proposed == [trial.params for trial in whole.trials()]
    assert all(proposed.count(params) == 1 for params in proposed)


def test_a_trial_that_ends_before_its_last_epoch_is_no_success(tmp_path: Path) -> None:
    study = Study(sqlite_url(tmp_path), make_space(early_stopping={"name": "none"}))
    assert study.next(1) == 0
    study.report(0, 1, 0.4, {"epochs": 3})
    study.complete(0)
    assert study.trials()[0].state == TrialState.FAIL
    assert "after epoch 1 of 3" in study.trials()[0].user_attrs["reason"]
