"""The study: every trial is on record exactly once, with its best value, whatever happens to the process."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config import Experiment, Float, Int, SearchSpace, override
from cdn_tune.tuning.layout import study_url
from cdn_tune.tuning.storage.open import open_storage
from cdn_tune.tuning.study.failures import LOST, MEMORY, NOT_FINITE
from cdn_tune.tuning.study.filtered_study import violations
from cdn_tune.tuning.study.ranking import pareto_front, ranking, role_of, value_of
from cdn_tune.tuning.study.study import Study

BASE: Experiment = override(
    {"name": "base", "data": {"dataset": "charades_sta", "root": "nowhere", "feature_size": 8, "word_size": 8}},
    {"model.hidden": 8, "model.map.layers": 4, "model.map.dynamic_layers": 1, "train.epochs": 4},
    "base",
)


def make_space(**more: object) -> SearchSpace:
    parameters = {"optim.lr": Float(low=1e-4, high=1e-1, log=True), "model.map.layers": Int(low=2, high=4)}
    sampler = {"startup_trials": 2}
    return SearchSpace.model_validate(
        {"name": "s", "experiment": "x", "parameters": parameters, "sampler": sampler, "start_with": [], **more}
    )


def open_study(folder: Path, space: SearchSpace) -> Study:
    """Opens a study as a new process does."""
    study = Study(open_storage(study_url(folder), sole_writer=True), space, BASE)
    if not study.entries():
        study.begin()
    return study


def run(study: Study, limit: int, curves: dict[int, list[float]]) -> None:
    """Plays a search: each trial follows its curve, the pruner may stop it."""
    while (number := study.next(limit)) is not None:
        curve = curves.get(number, [0.1 * number])
        best = 0.0
        for epoch, value in enumerate(curve, start=1):
            best = max(best, value)
            note = {"best_epoch": epoch, "epoch": epoch, "epochs": len(curve), "val": {"R1@0.5": best}}
            if study.report(number, epoch, best, note):
                study.prune(number, "lagged")
                break
        study.complete(number)


def test_values_are_the_best_and_states_are_told_apart(tmp_path: Path) -> None:
    study = open_study(tmp_path, make_space(early_stopping={"name": "none"}))
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
    study = open_study(tmp_path, make_space(early_stopping={"name": "asha", "reduction_factor": 2}))
    run(study, 4, {n: [0.9 - 0.2 * n, 0.9 - 0.2 * n] for n in range(4)})
    states = [trial.state for trial in study.trials()]
    assert states[0] == TrialState.COMPLETE
    assert TrialState.PRUNED in states
    for trial in study.trials():
        assert trial.value == pytest.approx(0.9 - 0.2 * trial.number)
        assert value_of(trial) == trial.value


def test_an_epoch_on_record_is_not_judged_again(tmp_path: Path) -> None:
    space = make_space(early_stopping={"name": "median", "startup_trials": 1, "min_resource": 1})
    study = open_study(tmp_path, space)
    weak = study.next(4)
    assert weak is not None
    assert not study.report(weak, 1, 0.1, {"epoch": 1, "epochs": 4})  # there is nothing to compare it with
    run(study, 4, {number: [0.5 + 0.1 * number] * 2 for number in (1, 2, 3)})
    resumed = open_study(tmp_path, space)
    assert resumed.next(4) == weak
    assert not resumed.report(weak, 1, 0.1, {"epoch": 1, "epochs": 4})  # below the median by now
    assert resumed.report(weak, 2, 0.1, {"epoch": 2, "epochs": 4})


def test_median_pruner_waits_for_startup_trials(tmp_path: Path) -> None:
    space = make_space(early_stopping={"name": "median", "startup_trials": 3, "min_resource": 1})
    study = open_study(tmp_path, space)
    run(study, 5, {n: [0.5, 0.5] if n < 3 else [0.1, 0.1] for n in range(5)})
    assert [trial.state for trial in study.trials()] == [TrialState.COMPLETE] * 3 + [TrialState.PRUNED] * 2


def test_a_new_process_takes_up_what_was_running(tmp_path: Path) -> None:
    space = make_space(start_with=[{"optim.lr": 0.01, "model.map.layers": 3}])
    first = open_study(tmp_path, space)
    assert first.next(4) == 0
    assert first.parameters(0) == {"optim.lr": 0.01, "model.map.layers": 3}
    assert first.next(4) == 1
    first.report(1, 1, 0.4, {})
    parameters = first.parameters(1)
    del first  # the process dies

    second = open_study(tmp_path, space)
    assert [trial.number for trial in second.unfinished()] == [0, 1]
    assert [second.next(4), second.next(4)] == [0, 1]
    assert second.parameters(1) == parameters
    assert second.report(1, 1, 0.4, {}) is False  # told again after the resume: no second entry
    second.report(0, 1, 0.2, {"epoch": 4, "epochs": 4})
    second.report(1, 2, 0.6, {"epoch": 4, "epochs": 4})
    second.complete(0)
    second.complete(1)
    run(second, 4, {})
    trials = second.trials()
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert trials[1].intermediate_values == {1: 0.4, 2: 0.6}
    assert sum(trial.params == {"optim.lr": 0.01, "model.map.layers": 3} for trial in trials) == 1


def test_telling_twice_changes_nothing(tmp_path: Path) -> None:
    study = open_study(tmp_path, make_space())
    run(study, 1, {0: [0.7]})
    study.fail(0, "late news")
    study.prune(0, "late news")
    study.complete(0)
    assert study.report(0, 9, 0.9, {"x": 1}) is False
    trial = study.trials()[0]
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.7)
    assert "x" not in trial.user_attrs
    assert "reason" not in trial.user_attrs


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_same_seed_same_parameters(tmp_path: Path, sampler: str) -> None:
    seen = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        study = open_study(tmp_path / name, make_space(sampler={"name": sampler, "seed": 3, "startup_trials": 2}))
        run(study, 6, {})
        seen.append([trial.params for trial in study.trials()])
    assert seen[0] == seen[1]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_resumed_search_proposes_what_an_uninterrupted_one_would(tmp_path: Path, sampler: str, cut: int) -> None:
    space = make_space(sampler={"name": sampler, "seed": 3, "startup_trials": 4}, early_stopping={"name": "none"})
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = open_study(tmp_path / "whole", space)
    run(whole, 8, {})
    for limit in (cut, 8):
        resumed = open_study(tmp_path / "cut", space)  # a new process each time
        run(resumed, limit, {})
    proposed = [trial.params for trial in resumed.trials()]
    assert proposed == [trial.params for trial in whole.trials()]
    assert all(proposed.count(params) == 1 for params in proposed)


def test_a_trial_that_ends_before_its_last_epoch_is_no_success(tmp_path: Path) -> None:
    study = open_study(tmp_path, make_space(early_stopping={"name": "none"}))
    assert study.next(1) == 0
    study.report(0, 1, 0.4, {"epoch": 1, "epochs": 3})
    study.complete(0)
    assert study.trials()[0].state == TrialState.FAIL
    assert "after epoch 1 of 3" in study.trials()[0].user_attrs["reason"]


def test_what_breaks_a_constraint_is_recorded_and_never_returned(tmp_path: Path) -> None:
    space = make_space(constraints=["model.map.layers <= 3"], sampler={"name": "random", "seed": 1}, trials=8)
    study = open_study(tmp_path, space)
    run(study, 8, {})
    assert len(study.trials()) == 8
    assert all(study.parameters(trial.number)["model.map.layers"] <= 3 for trial in study.trials())
    refused = [trial for trial in study.entries() if role_of(trial) == "refused"]
    assert refused
    for trial in refused:
        assert trial.state == TrialState.PRUNED
        assert violations(trial)["model.map.layers <= 3"] == pytest.approx(1 / 3)
        assert trial.user_attrs["reason"] == "refused: model.map.layers <= 3 does not hold (model.map.layers=4)"
    assert all(violations(trial)["model.map.layers <= 3"] <= 0 for trial in study.trials())


def test_values_that_make_no_experiment_are_refused(tmp_path: Path) -> None:
    parameters = {"model.map.dynamic_layers": Int(low=0, high=8), "model.map.layers": Int(low=1, high=8)}
    study = open_study(tmp_path, make_space(parameters=parameters, sampler={"name": "random"}))
    run(study, 6, {})
    assert len(study.trials()) == 6
    refused = [trial for trial in study.entries() if role_of(trial) == "refused"]
    assert refused
    assert all("exceeds layers" in trial.user_attrs["reason"] for trial in refused)


def test_a_space_without_a_point_that_may_start_halts(tmp_path: Path) -> None:
    study = open_study(tmp_path, make_space(constraints=["model.map.layers > 9"], sampler={"name": "random"}))
    assert study.next(3) is None
    assert study.halted is not None
    assert "model.map.layers > 9 does not hold" in study.halted
    assert not study.trials()


def test_nothing_is_tried_twice_and_a_finite_space_ends(tmp_path: Path) -> None:
    parameters = {"model.map.layers": Int(low=2, high=4)}
    study = open_study(tmp_path, make_space(parameters=parameters, sampler={"name": "random"}))
    run(study, 50, {0: [0.5], 1: [0.7]})
    assert sorted(study.parameters(trial.number)["model.map.layers"] for trial in study.trials()) == [2, 3, 4]
    assert study.is_finished(50)
    by_number = {trial.number: trial for trial in study.entries()}
    copies = [trial for trial in by_number.values() if role_of(trial) == "copy"]
    assert copies
    for copy in copies:
        earlier = by_number[copy.user_attrs["copy_of"]]
        assert copy.params == earlier.params
        assert copy.value == earlier.value


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
@pytest.mark.parametrize("killed_at", range(5))
def test_killed_while_a_trial_is_asked_for(
    tmp_path: Path, killed_at: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write to the storage may be the last: the next process completes the proposal under its number.

    Of the run folder's journal, nothing of the broken proposal is left.
    """
    if kind == "sqlite":
        open_storage(f"sqlite:///{tmp_path}/study.db")  # a run folder that an earlier version began
    space = make_space(sampler={"name": "random", "seed": 5}, constraints=["model.map.layers <= 4"])
    study = open_study(tmp_path, space)
    run(study, 1, {})
    storage, left = study.optuna.storage, killed_at
    for name in ("create_new_trial", "set_trial_param", "set_trial_system_attr", "set_trial_user_attr"):
        original = getattr(storage, name)

        def dying(*arguments: Any, _original: Any = original, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return _original(*arguments, **options)

        monkeypatch.setattr(storage, name, dying)
    with pytest.raises(KeyboardInterrupt):
        list(iter(lambda: study.next(3), None))
    monkeypatch.undo()
    before = {trial.number: trial.params for trial in open_study(tmp_path, space).trials()}
    assert list(before) == ([0] if killed_at == 0 or (kind == "journal" and killed_at < 5) else [0, 1])
    run(open_study(tmp_path, space), 3, {})
    again = open_study(tmp_path, space)
    assert [trial.number for trial in again.trials()] == [0, 1, 2]
    assert all(trial.state == TrialState.COMPLETE and len(trial.params) == 2 for trial in again.trials())
    for number, params in before.items():
        assert params.items() <= again.trial(number).params.items()


def failing(study: Study, reason: str, kind: str = "deterministic") -> FrozenTrial:
    number = study.next(99)
    assert number is not None
    study.fail(number, reason, kind)
    return study.trial(number)


def test_three_equal_failures_before_the_first_epoch_halt(tmp_path: Path) -> None:
    study = open_study(tmp_path, make_space(sampler={"name": "random"}))
    failing(study, "video 17 is missing in /data/a.hdf5")
    failing(study, "video 23 is missing in /data/b.hdf5")
    failing(study, "another reason")
    assert study.halted is None
    failing(study, "video 4 is missing in /data/a.hdf5")
    number = study.next(99)
    assert number is not None
    study.report(number, 1, 0.1, {"epoch": 1, "epochs": 4})
    failing(study, "video 4 is missing in /data/a.hdf5")
    failing(study, "video 9 is missing in /data/a.hdf5")
    assert study.halted is None  # a trial got further in between
    failing(study, "video 1 is missing in /data/a.hdf5")
    assert study.halted == (
        "3 trials in a row failed before their first epoch for the same reason: video 1 is missing in /data/a.hdf5"
    )
    assert study.next(99) is None


def test_numbers_that_are_not_finite_do_not_halt(tmp_path: Path) -> None:
    study = open_study(tmp_path, make_space(sampler={"name": "random"}))
    for _ in range(5):
        failing(study, "loss nan at epoch 1", NOT_FINITE)
    assert study.halted is None


def test_out_of_memory_is_infeasible_and_remembered(tmp_path: Path) -> None:
    parameters = {"model.hidden": Int(low=8, high=64, step=8)}
    space = make_space(parameters=parameters, start_with=[{"model.hidden": 32}], sampler={"name": "random"})
    study = open_study(tmp_path, space)
    failed = failing(study, "out of memory with one query at once", MEMORY)
    assert failed.state == TrialState.FAIL
    assert violations(failed) == {"memory": 1.0}
    for opened in (study, open_study(tmp_path, space)):  # a new process knows it too
        run(opened, 3 if opened is study else 4, {})
        tried = [opened.parameters(trial.number)["model.hidden"] for trial in opened.trials()[1:]]
        assert tried
        assert max(tried) < 32
    refused = [trial for trial in study.entries() if role_of(trial) == "refused"]
    assert all("ran out of memory" in trial.user_attrs["reason"] for trial in refused)


def test_failed_trials_are_tried_again_under_a_new_number(tmp_path: Path) -> None:
    space = make_space(sampler={"name": "random"})
    study = open_study(tmp_path, space)
    first = failing(study, "its worker process died", LOST)
    run(study, 2, {})
    assert study.is_finished(2)
    assert study.retry_failed() == 1
    assert not study.is_finished(2)
    assert study.retry_failed() == 0  # it waits already
    run(study, 2, {})
    again = study.trials()[-1]
    assert again.params == first.params
    assert again.user_attrs["retry_of"] == first.number
    assert again.state == TrialState.COMPLETE
    assert study.counted() == 2
    assert study.is_finished(2)


def test_several_objectives(tmp_path: Path) -> None:
    space = make_space(objectives=["R1@0.5", "parameters", "R1@0.7"], sampler={"name": "random"})
    study = open_study(tmp_path, space)
    for value in (0.5, 0.3, 0.4):
        number = study.next(3)
        assert number is not None
        note = {"best_epoch": 1, "epoch": 1, "epochs": 1, "val": {"R1@0.5": value, "R1@0.7": value / 2}}
        study.report(number, 1, value, note)
        study.complete(number)
    trials = study.trials()
    assert [trial.values[0] for trial in trials] == [0.5, 0.3, 0.4]
    assert [trial.values[2] for trial in trials] == [0.25, 0.15, 0.2]
    assert all(trial.values[1] == trial.user_attrs["parameters"] > 0 for trial in trials)
    front = pareto_front(study.entries(), study.directions)
    assert front[0].number == 0
    fewest = min(trials, key=lambda trial: trial.values[1])
    assert fewest.number in [trial.number for trial in front]
