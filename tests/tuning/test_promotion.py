"""Trials that pause at a rung and go on when promoted: on the virtual engine, at most."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from cdn_tune.cli.show.tables import counts_line
from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.errors import ConfigError, RunError
from cdn_tune.training import train_trial
from cdn_tune.training.loop import TrainResult
from cdn_tune.training.memory.estimate import checkpoint_bytes
from cdn_tune.training.object_store.working_copy import TRAINING_LOCK
from cdn_tune.training.reports import EpochReport
from cdn_tune.tuning.engine.door import Decision, Ending
from cdn_tune.tuning.engine.ray.results import NUMBER, REPORT, SECONDS
from cdn_tune.tuning.engine.ray.tune_adapters import Adapters
from cdn_tune.tuning.engine.virtual.engine import CurvePoint
from cdn_tune.tuning.planning.plan import expected_epochs
from cdn_tune.tuning.planning.preflight import check_disk, checkpoint_sizes, holding
from cdn_tune.tuning.results.leaderboard import leaderboard
from cdn_tune.tuning.results.status import eta_seconds
from cdn_tune.tuning.study.candidates import Candidates
from cdn_tune.tuning.study.filtered_study import stored_study
from cdn_tune.tuning.study.ranking import (
    CONFIRMATION,
    CONFIRMS,
    FINISHED,
    SEED,
    Objectives,
    front_ranks,
    is_paused,
    role_of,
)
from cdn_tune.tuning.study.rungs import COMPARED, Rungs
from cdn_tune.tuning.study.samplers import for_tpe

from .virtual_search import BASE, VirtualSearch, make_space

VALUES = (0.9, 0.1, 0.2, 0.3, 0.8, 0.4, 0.5, 0.7, 0.6)  # of trials 0 to 8, throughout
EPOCHS = 9
PROMOTE: dict[str, Any] = {"name": "asha", "mode": "promote", "min_resource": 1, "reduction_factor": 3}


def flat(number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
    """A curve without a slope; the other metric is best in the trials that are worst in the first."""
    value = VALUES[number % len(VALUES)]
    return [CurvePoint({"R1@0.5": value, "mIoU": 1 - value}, 1.0)] * EPOCHS


def search_of(limit: int = 9, slots: Sequence[int] = (1,), curve: Any = flat, **more: Any) -> VirtualSearch:
    return VirtualSearch(make_space(**{"early_stopping": PROMOTE, **more}), limit, slots, curve=curve)


def begun(search: VirtualSearch) -> list[int]:
    return [number for _, what, number in search.logs if what == "begins"]


def states(search: VirtualSearch) -> dict[str, int]:
    rows = leaderboard(search.study.entries(), ["optim.lr"], ["R1@0.5"])
    return {state: sum(row["state"] == state for row in rows) for state in {row["state"] for row in rows}}


def test_a_schedule_by_hand() -> None:
    """Of three at a rung the best goes on, of six two, of nine three: from the highest rung first."""
    search = search_of()
    assert search.start()
    assert begun(search) == [0, 1, 2, 0, 3, 4, 5, 4, 6, 7, 8, 7, 0]
    reached = [len(trial.intermediate_values) for trial in search.trials]
    assert reached == [9, 1, 1, 1, 3, 1, 1, 3, 1]
    assert set(search.world.trained.values()) == {1}
    assert states(search) == {"complete": 1, "pruned": 8}
    reason = "stopped early: paused after epoch 3, not promoted before the search ended"
    assert search.trials[4].user_attrs["reason"] == reason
    assert search.world.busy_seconds == search.world.slot_seconds == 21
    assert list(search.files.kept) == [0, 4]


def test_a_paused_trial_counts_costs_is_shown_and_survives() -> None:
    search = search_of()
    assert search.start(stop_after=6.5)  # as trial 4 runs: 0 waits at the second rung, the others at the first
    assert [is_paused(trial) for trial in search.trials] == [True] * 5
    assert states(search) == {"paused": 5}
    assert search.study.counted() == 5
    rows = leaderboard(search.study.entries(), [], [], gpus=1.0)
    assert counts_line(rows) == "5 trials: 5 paused"
    assert [row["gpu_hours"] for row in rows] == [round(seconds / 3600, 5) for seconds in (3, 1, 1, 1, 1)]
    assert eta_seconds(rows, asked=5, slots=1) == 0.0
    assert search.files.gone == set()
    assert search.start()
    whole = search_of()
    assert whole.start()
    assert begun(search) == begun(whole)  # as if it had never been interrupted


@pytest.mark.parametrize("mode", ["promote", "stop"])
def test_a_trial_that_was_at_a_rung_when_its_driver_was_killed_ends_there(mode: str) -> None:
    """Between the report and the decision: it is made when the report comes again, and but once."""
    ends = set()
    for write in range(5, 60):
        search = search_of(limit=3, early_stopping={**PROMOTE, "mode": mode})
        search.start(kill_at_write=write)
        assert search.start()
        ends.add(tuple(len(trial.intermediate_values) for trial in search.trials))
        assert set(search.world.trained.values()) == {1}
    assert ends == {(9, 1, 1)}


def test_at_least_one_trial_ends_even_if_there_are_too_few_to_compare() -> None:
    search = search_of(limit=2)
    assert search.start()
    assert [trial.state for trial in search.trials] == [TrialState.COMPLETE, TrialState.PRUNED]


def test_a_budget_ends_what_is_paused_and_a_stop_does_not() -> None:
    search = search_of(budget={"target": 0.9})  # reached by the first trial, which is paused
    assert search.start()
    assert search.driver.ended_by is not None
    assert states(search) == {"pruned": 1}
    assert list(search.files.kept) == [0]
    search = search_of(budget={"hours": 6.5 / 3600})
    assert search.start()
    assert states(search).get("paused", 0) == 0
    assert list(search.files.kept) == [0, 4]


def confirmations(search: VirtualSearch) -> list[FrozenTrial]:
    return [trial for trial in search.study.entries() if role_of(trial) == CONFIRMATION]


def test_the_best_are_confirmed_once_no_trial_is_paused() -> None:
    """Trial 0 is complete, trial 4 was paused at the second rung. Their confirmations pass all rungs."""
    search = search_of(13, confirm={"top": 2, "seeds": 2}, keep=1)
    gone: list[set[int]] = []

    def curve(number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
        if "seed" in parameters:
            gone.append(set(search.files.gone))
            return [CurvePoint({"R1@0.5": 0.05, "mIoU": 0.1}, 1.0)] * EPOCHS
        return flat(number, parameters)

    search.curve = curve
    assert search.start()
    assert begun(search) == [0, 1, 2, 0, 3, 4, 5, 4, 6, 7, 8, 7, 0, 9, 10, 11, 12]
    found = [(trial.user_attrs[CONFIRMS], trial.user_attrs[SEED]) for trial in confirmations(search)]
    assert found == [(0, 1), (4, 1), (0, 2), (4, 2)]
    assert gone[0] == set(range(9)), "paused trials still held their checkpoints"
    assert states(search) == {"complete": 5, "pruned": 8}
    assert not any({"paused", "promoted"} & trial.user_attrs.keys() for trial in confirmations(search))
    search.limit += 3  # of these, trial 13 + 2 is the best at the first rung
    assert search.start()
    assert len(search.trials) == 12
    assert all(trial.state in FINISHED for trial in search.study.entries())


def test_what_paused_trials_would_take_again_is_kept_back_for_confirmation() -> None:
    """No trial goes on before the ninth. Once 70 of 250 seconds are spent, 180 are left: the best one twice, whole."""

    def curve(number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
        return [CurvePoint({"R1@0.5": VALUES[number % 9]}, 10.0)] * EPOCHS

    more = {"confirm": {"top": 1, "seeds": 1}, "budget": {"hours": 250 / 3600}}
    search = search_of(100, curve=curve, early_stopping={**PROMOTE, "reduction_factor": 9}, **more)
    assert search.start()
    assert states(search) == {"pruned": 7, "complete": 1}
    assert [trial.user_attrs[CONFIRMS] for trial in confirmations(search)] == [0]
    assert search.driver.ended_by is not None
    assert "the rest is for confirmation" in search.driver.ended_by
    assert search.world.clock.now == 160


def test_a_target_ends_promotions_and_is_followed_by_confirmation() -> None:
    more = {"confirm": {"top": 1, "seeds": 1}, "budget": {"target": 0.8}}
    search = search_of(100, curve=lambda number, _: flat(number + 1, {}), **more)  # trial 3 is the first with 0.8
    assert search.start()
    assert begun(search) == [0, 1, 2, 3, 4]
    assert [trial.user_attrs[CONFIRMS] for trial in confirmations(search)] == [3]
    assert states(search) == {"pruned": 4, "complete": 1}


def test_hours_that_are_kept_back_are_not_spent_on_promotions() -> None:
    """Trial 2 makes trial 0 one to be promoted at 3 seconds, when 17.5 are left and 18 are kept back."""
    search = search_of(100, confirm={"top": 1, "seeds": 1}, budget={"hours": 20.5 / 3600})
    assert search.start()
    assert begun(search) == [0, 1, 2, 3]
    assert [trial.user_attrs[CONFIRMS] for trial in confirmations(search)] == [0]


def test_a_trial_at_its_end_is_compared_as_after_a_new_start() -> None:
    """Trial 0 ends after 9 seconds, at the first rung; trial 1 is better there and need not pause."""

    def curve(number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
        return [CurvePoint({"R1@0.5": 0.5 + number / 10}, seconds) for seconds in ((10.0, 1.0) if number else (9.0,))]

    rule = {**PROMOTE, "unit": "seconds", "min_resource": 9, "reduction_factor": 2}
    search, again = (search_of(2, curve=curve, early_stopping=rule) for _ in range(2))
    assert search.start()
    assert again.start(stop_after=9.5)
    assert again.start()
    assert begun(search) == [0, 1]
    assert begun(again) == [0, 1, 1]
    assert [trial.user_attrs.get("paused") for trial in search.trials] == [None, None]
    assert [trial.user_attrs for trial in search.trials][1]["promoted"] == 1


def test_no_slot_waits_while_a_paused_trial_may_go_on() -> None:
    generator = random.Random(3)
    values = [generator.random() for _ in range(60)]

    def curve(number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
        return [CurvePoint({"R1@0.5": values[number]}, 1.0 + number / 1000)] * EPOCHS

    search = search_of(60, slots=(4,), curve=curve)
    assert search.start()
    assert search.world.busy_seconds > 0.85 * search.world.slot_seconds
    complete = [trial.number for trial in search.trials if trial.state == TrialState.COMPLETE]
    assert max(range(60), key=values.__getitem__) in complete
    assert 6 <= len(complete) <= 20
    kept = sorted(search.files.kept, key=lambda number: -values[number])
    assert kept == sorted(range(60), key=lambda number: -values[number])[:2]


def test_the_plan_expects_the_epochs_that_are_trained() -> None:
    generator = random.Random(5)
    trained = []
    for _ in range(10):
        values = [generator.random() for _ in range(60)]
        search = search_of(60, curve=lambda number, _, of=values: [CurvePoint({"R1@0.5": of[number]})] * EPOCHS)
        assert search.start()
        trained.append(search.world.trained.total())
    base = BASE.model_copy(update={"train": BASE.train.model_copy(update={"epochs": EPOCHS})})
    expected = expected_epochs(make_space(early_stopping=PROMOTE), {"cdn": base}, 60)
    assert expected is not None
    assert expected["cdn"] == pytest.approx(sum(trained) / 10, rel=0.1)
    stopping = expected_epochs(make_space(early_stopping={**PROMOTE, "mode": "stop"}), {"cdn": base}, 60)
    assert stopping is not None
    assert stopping["cdn"] < expected["cdn"]  # a trial that was stopped is never among the best later


def test_the_plan_expects_epochs_by_family_and_of_confirmations() -> None:
    """Trials of odd numbers are of a family whose epochs are half as many."""
    lengths = {"long": EPOCHS, "short": 4}
    families = {
        name: BASE.model_copy(update={"train": BASE.train.model_copy(update={"epochs": epochs})})
        for name, epochs in lengths.items()
    }
    generator = random.Random(7)
    trained = dict.fromkeys(families, 0.0)
    for _ in range(20):
        values = [generator.random() for _ in range(60)]
        names = [generator.choice(["long", "short"]) for _ in range(60)]
        search = search_of(
            60, curve=lambda number, _, of=values, by=names: [CurvePoint({"R1@0.5": of[number]})] * lengths[by[number]]
        )
        assert search.start()
        for number, _ in search.world.trained:
            trained[names[number]] += 1 / 20
    expected = expected_epochs(make_space(early_stopping=PROMOTE), families, 60)
    assert expected == pytest.approx(trained, rel=0.15)
    space = make_space(early_stopping=PROMOTE, confirm={"top": 2, "seeds": 2})
    assert expected is not None
    whole = {name: epochs + 2 * lengths[name] for name, epochs in expected.items()}
    assert expected_epochs(space, families, 64) == pytest.approx(whole)


def test_hyperband_promotes_within_its_brackets() -> None:
    search = search_of(30, early_stopping={**PROMOTE, "name": "hyperband"})
    assert search.start()
    reached = [len(trial.intermediate_values) for trial in search.trials]
    assert set(reached) == {1, 3, 9}
    assert set(search.world.trained.values()) == {1}


def test_seconds_count_training_and_evaluation() -> None:
    def curve(number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
        return [CurvePoint({"R1@0.5": VALUES[number]}, 2.5 if number % 2 else 10.0)] * EPOCHS

    search = search_of(3, curve=curve, early_stopping={**PROMOTE, "unit": "seconds", "min_resource": 4})
    assert search.start()
    assert [sorted(trial.intermediate_values) for trial in search.trials][1:] == [[2500, 5000], [10000]]
    assert len(search.trials[0].intermediate_values) == EPOCHS


@pytest.mark.parametrize(
    ("name", "combine", "complete"),
    [("median", "any", [0]), ("median", "all", [0, 1, 2]), ("asha", "any", [0]), ("asha", "all", [0, 1])],
)
def test_a_trial_may_lag_in_several_metrics(name: str, combine: str, complete: list[int]) -> None:
    """Trial 0 is best in the first, trial 1 in the second, trial 2 in between in both."""
    rule = {"name": name, "startup_trials": 1, "reduction_factor": 2}
    search = search_of(3, early_stopping={**rule, "metrics": ["R1@0.5", "mIoU"], "combine": combine})
    assert search.start()
    assert [trial.number for trial in search.trials if trial.state == TrialState.COMPLETE] == complete
    assert search.trials[1].user_attrs[f"{COMPARED}:1"] == [VALUES[1], 1 - VALUES[1]]


def entries(*points: Sequence[float]) -> list[FrozenTrial]:
    found = []
    for number, point in enumerate(points):
        attributes = {f"{COMPARED}:1": list(point), "paused": 1}
        trial = create_trial(state=TrialState.RUNNING, intermediate_values={1: point[0]}, user_attrs=attributes)
        trial.number = number
        found.append(trial)
    return found


def promoted(space: SearchSpace, trials: list[FrozenTrial]) -> list[int]:
    """The paused trials that may go on, in the order in which they would."""
    study = stored_study(InMemoryStorage(), "s", Objectives(space, BASE).directions)
    for trial in trials:
        study.storage.create_new_trial(study.id_in_storage, trial)
    rungs, found = Rungs(space, 9, study), []
    while (number := rungs.promote()) is not None:
        found.append(number)
    return found


POINTS = [(0.9, 0.1), (0.5, 0.5), (0.1, 0.9), (0.4, 0.4), (0.35, 0.2), (0.05, 0.05)]


def test_the_highest_rung_comes_first() -> None:
    """Trial 3 may leave the first rung, trial 0 the second."""
    found = []
    for number, value in enumerate((0.9, 0.8, 0.1, 0.7, 0.2, 0.2, 0.2, 0.2, 0.2)):
        rungs = 2 if number < 3 else 1
        trial = create_trial(
            state=TrialState.RUNNING,
            intermediate_values=dict.fromkeys(range(1, 4 if rungs == 2 else 2), value),
            user_attrs={"paused": rungs, "promoted": rungs - 1},
        )
        trial.number = number
        found.append(trial)
    assert promoted(make_space(early_stopping=PROMOTE), found) == [0, 3]


def test_any_and_all_go_by_the_worst_and_the_best_rank() -> None:
    settings = {**PROMOTE, "metrics": ["R1@0.5", "mIoU"]}
    for combine, best in (("any", [1]), ("all", [0, 2, 1])):
        space = make_space(early_stopping={**settings, "combine": combine})
        assert promoted(space, entries(*POINTS)) == best


def test_several_objectives_order_by_non_dominated_rank() -> None:
    space = make_space(early_stopping={**PROMOTE, "reduction_factor": 2}, objectives=["R1@0.5", "seconds"])
    points = [(value, -cost) for value, cost in POINTS]
    assert promoted(space, entries(*points)) == [0, 1, 2]


def test_a_search_of_several_objectives_promotes_from_its_front() -> None:
    search = search_of(3, objectives=["R1@0.5", "mIoU"])
    assert search.start()
    assert search.trials[0].user_attrs[f"{COMPARED}:1"] == [VALUES[0], 1 - VALUES[0]]
    assert [trial.state for trial in search.trials].count(TrialState.COMPLETE) == 1


def test_front_ranks_peel_one_front_after_the_other() -> None:
    generator = random.Random(0)
    for _ in range(50):
        points = [[generator.randrange(5) for _ in range(3)] for _ in range(12)]
        ranks, left, rank = front_ranks(points), set(range(12)), 0
        while left:
            front = {
                one
                for one in left
                if not any(
                    points[other] != points[one]
                    and all(a <= b for a, b in zip(points[other], points[one], strict=True))
                    for other in left
                )
            }
            assert {place for place in range(12) if ranks[place] == rank} == front
            left, rank = left - front, rank + 1


def test_samplers_learn_from_paused_trials() -> None:
    """As from pruned ones: else they would know next to nothing until the search ends."""
    search = search_of(6, sampler={"name": "tpe", "startup_trials": 1})
    seen: list[list[TrialState]] = []

    def show(*arguments: Any, **options: Any) -> list[FrozenTrial]:
        shown = for_tpe(*arguments, **options)
        seen.append([trial.state for trial in shown])
        return shown

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cdn_tune.tuning.study.samplers.for_tpe", show)
        assert search.start(stop_after=1.5)
        assert search.start()
    assert [TrialState.PRUNED, TrialState.RUNNING] in seen


@pytest.mark.parametrize(
    ("stopping", "fault"),
    [
        ({"name": "median", "mode": "promote"}, "median has none; use asha or hyperband"),
        ({"name": "curve", "mode": "promote"}, "curve has none; use asha or hyperband"),
        ({"name": "hyperband", "unit": "seconds"}, "hyperband needs the length of a trial"),
        ({"name": "wilcoxon", "metrics": ["mIoU"]}, "wilcoxon compares no metrics"),
        ({"name": "none", "metrics": ["mIoU"]}, "none compares no metrics"),
    ],
)
def test_what_does_not_go_together_is_refused(stopping: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        make_space(early_stopping=stopping)


def test_a_disk_budget_that_cannot_hold_the_paused_trials_is_refused(tmp_path: Path) -> None:
    def space(**more: Any) -> SearchSpace:
        return make_space(early_stopping=PROMOTE, trials=10, keep=1, **more)

    running, kept = checkpoint_sizes(Candidates(space(), BASE))
    need = 10 * running + kept
    assert holding(space(), 2, 10) == 10
    assert holding(space(confirm={"top": 2, "seeds": 2}), 2, 10) == 6  # none is paused while four confirm
    assert holding(make_space(), 2, 10) == 2
    tight = space(disk_budget_gb=0.9 * need)
    with pytest.raises(ConfigError, match=r"10 trials paused ones included .* need up to .* raise it to"):
        check_disk(tight, Candidates(tight, BASE), tmp_path, 10)
    wide = space(disk_budget_gb=1.1 * need)
    assert check_disk(wide, Candidates(wide, BASE), tmp_path, 10) is None


def test_a_disk_that_paused_trials_fill_is_an_error_and_no_wait_for_ever() -> None:
    """Estimates may fall short of what is written."""
    room = 1.5 * checkpoint_bytes(BASE)
    search = search_of(3, disk_budget_gb=room, parameters={"optim.lr": {"type": "float", "low": 0.1, "high": 1.0}})
    with pytest.raises(RunError, match="disk_budget_gb="):
        search.start()
    assert states(search) == {"paused": 2}


def test_ray_stops_a_paused_trial_which_may_be_assigned_at_once() -> None:
    calls: list[Any] = []
    driver = SimpleNamespace(
        reported=lambda number, report: Decision.PAUSE,  # noqa: ARG005
        ended=lambda number, ending: calls.append((number, ending)),
    )
    adapters = Adapters(driver, room=lambda: None, loss=lambda error: error, stopped=calls.append)  # type: ignore
    adapters.numbers["id"] = 7
    trial = SimpleNamespace(config={NUMBER: 7}, trial_id="id")
    assert adapters.scheduler.on_trial_result(None, trial, {REPORT: object(), SECONDS: 1.0}) == "STOP"
    assert calls == [7, (7, Ending("paused"))]
    adapters.searcher.on_trial_complete("id")  # of the attempt that was paused
    assert len(calls) == 2


def test_a_trial_frees_its_folder_while_it_reports(
    tiny: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that Ray Tune keeps in its report is in no other's way."""
    lock = FileLock(tmp_path / TRAINING_LOCK, timeout=0)
    found = []

    def is_free(_: EpochReport | None = None) -> None:
        try:
            with lock:
                found.append(True)
        except TimeoutError:
            found.append(False)

    def train(experiment: object, folder: object, report: Any, *more: object) -> TrainResult:
        is_free()
        report(None)
        is_free()
        return None  # type: ignore[return-value]

    monkeypatch.setattr(train_trial, "train", train)
    monkeypatch.setattr(train_trial, "open_data", lambda *_: {})
    monkeypatch.setattr(train_trial, "is_planted", lambda *_: False)
    train_trial.train_in(tiny(), tmp_path, is_free)
    is_free()
    assert found == [False, True, False, True]
