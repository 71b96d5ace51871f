"""Confirmation: the best trials are trained again under further seeds, and the best by mean wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from cdn_tune.config import SearchSpace
from cdn_tune.config.load import build
from cdn_tune.errors import ConfigError
from cdn_tune.tuning.engine.virtual.engine import CurvePoint, Fault
from cdn_tune.tuning.planning.preflight import check_confirm
from cdn_tune.tuning.results.leaderboard import leaderboard
from cdn_tune.tuning.study.ranking import (
    CONFIRMATION,
    CONFIRMS,
    ROLE,
    SEED,
    confirmed,
    models,
    ranking,
    role_of,
    value_of,
)
from cdn_tune.tuning.study.soundness import check_study

from .virtual_search import BASE, EPOCHS, VirtualSearch, make_space

HOUR = 3600.0


def entry(
    number: int, value: float, confirms: int | None = None, state: TrialState = TrialState.COMPLETE
) -> FrozenTrial:
    """A trial, or a confirmation of one."""
    role = {} if confirms is None else {ROLE: CONFIRMATION, CONFIRMS: confirms, SEED: number}
    trial = create_trial(
        state=state,
        values=[value] if state == TrialState.COMPLETE else None,
        intermediate_values={1: value},
        user_attrs=role,
    )
    trial.number = number
    return trial


def lucky(number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
    """The first trial is lucky: it has the best value of all, and the worst mean; an epoch takes 10 seconds."""
    worth = 0.5 + 0.02 * parameters["model.map.layers"]
    noise = 0.01 * math.sin(7 * parameters["seed"]) if "seed" in parameters else (0.4 if number == 0 else 0.0)
    return [CurvePoint({"R1@0.5": worth + noise, "mIoU": 0.1}, 10.0) for _ in range(EPOCHS)]


def confirming(top: int, seeds: int, **more: Any) -> SearchSpace:
    points = [{"model.map.layers": layers, "optim.lr": 1e-2} for layers in (1, 4, 3, 2)]
    space = {"early_stopping": {"name": "none"}, "start_with": points, **more}
    return make_space(confirm={"top": top, "seeds": seeds}, **space)


def runs_of(search: VirtualSearch) -> list[tuple[int, int]]:
    """Which trials were confirmed under which seeds, in that order."""
    runs = [trial for trial in search.study.entries() if role_of(trial) == CONFIRMATION]
    return [(trial.user_attrs[CONFIRMS], trial.user_attrs[SEED]) for trial in runs]


def test_the_best_by_mean_wins_and_the_mean_has_an_interval() -> None:
    trials = [entry(0, 0.9), entry(1, 0.8), entry(2, 0.7)]
    assert [trial.number for trial in ranking(trials)] == [0, 1, 2]
    trials += [
        entry(3, 0.60, 0),
        entry(4, 0.74, 1),
        entry(5, 0.64, 0),
        entry(6, 0.78, 1),
        entry(7, 0.99, 1, TrialState.FAIL),
    ]
    assert [trial.number for trial in ranking(trials)] == [1, 0, 2]
    assert [trial.number for trial in models(trials)] == [6, 5, 2]
    found = confirmed(trials)
    assert {number: each.mean for number, each in found.items()} == pytest.approx({0: 0.62, 1: 0.76})
    # Of all four runs: squares 4 x 0.02**2 over 2 degrees of freedom, Student's t 4.3027 at 97.5 %.
    half = 4.3027 * math.sqrt(4 * 0.02**2 / 2) / math.sqrt(2)
    assert found[1].interval == pytest.approx((0.76 - half, 0.76 + half), abs=1e-5)
    rows = {row["trial"]: row for row in leaderboard(trials, [], ["R1@0.5"])}
    assert [rows[number]["rank"] for number in range(8)] == [2, 1, 3, "", "", "", "", ""]
    assert (rows[1]["mean"], rows[1]["seeds"]) == (0.76, 2)
    assert rows[1]["mean_low"] < rows[1]["mean"] < rows[1]["mean_high"]
    assert rows[2]["mean"] == rows[2]["seeds"] == ""
    assert (rows[7]["confirms"], rows[7]["with_seed"], rows[7]["state"]) == (1, 7, "failed")


def test_one_seed_has_a_mean_and_no_interval() -> None:
    trials = [entry(0, 0.9), entry(1, 0.6, 0)]
    assert confirmed(trials)[0].interval is None
    assert leaderboard(trials, [], [])[0]["mean_low"] == ""


def test_a_lucky_trial_loses_to_the_better_one() -> None:
    search = VirtualSearch(confirming(2, 3, keep=1), 10, (2,), curve=lucky)
    assert search.start()
    assert search.driver.is_finished
    assert runs_of(search) == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3)]
    entries = search.study.entries()
    first, second = ranking(entries)[:2]
    assert (first.number, second.number) == (1, 0)
    assert (value_of(first) or 0) < (value_of(second) or 0)
    assert set(search.files.kept) == {trial.number for trial in models(entries)[:2]}
    assert not search.study.retry_failed()
    assert search.start()
    assert len(search.study.entries()) == 10, "a finished search was gone on with"


def test_confirmations_take_no_part_in_what_is_proposed() -> None:
    points = []
    for top in (0, 2):
        space = make_space(
            sampler={"name": "tpe", "startup_trials": 2},
            early_stopping={"name": "median", "startup_trials": 1},
            confirm={"top": top, "seeds": 2},
        )
        search = VirtualSearch(space, 6 + 2 * top, (1,))
        assert search.start()
        search.limit += 4  # as --add-trials does
        assert search.start()
        points.append([trial.params for trial in search.trials])
        assert len(search.trials) == 10
        assert all(
            trial.state == TrialState.COMPLETE for trial in search.study.entries() if role_of(trial) == CONFIRMATION
        )
    assert points[0] == points[1]


def test_after_more_trials_only_new_ones_among_the_best_are_confirmed() -> None:
    search = VirtualSearch(confirming(1, 2), 3, (1,), curve=lucky)  # one trial, two confirmations
    assert search.start()
    assert runs_of(search) == [(0, 1), (0, 2)]
    search.space = confirming(2, 2)
    search.limit = 8
    assert search.start()
    assert [trial.number for trial in search.trials] == [0, 1, 2, 3]
    assert runs_of(search) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert ranking(search.study.entries())[0].number == 1


def test_hours_are_kept_back_for_confirmation() -> None:
    """A trial takes 40 seconds; two seeds for two trials take 80 on two slots, after at most 40 for what runs."""
    space = confirming(2, 2, budget={"hours": 300 / HOUR})
    search = VirtualSearch(space, 100, (2,), curve=lucky, poll_seconds=1.0)
    assert search.start()
    assert len(runs_of(search)) == 4
    assert search.world.clock.now <= 300
    assert len(search.trials) == 10  # the last pair begins at 160 s, when 140 are left, of which 120 are kept back
    assert search.driver.ended_by is not None
    assert "the rest is for confirmation" in search.driver.ended_by
    entries = len(search.study.entries())
    assert search.start()
    assert len(search.study.entries()) == entries


def test_a_budget_that_ends_within_confirmation_leaves_it_to_be_gone_on_with() -> None:
    space = confirming(2, 2, budget={"hours": 60 / HOUR})  # too little: a trial takes 40 seconds
    search = VirtualSearch(space, 8, (2,), curve=lucky, poll_seconds=1.0)
    assert search.start()
    assert search.driver.ended_by is not None
    assert search.world.clock.now <= 75
    search.space = confirming(2, 2)
    assert search.start()
    assert search.driver.is_finished
    assert sorted(runs_of(search)) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert all(times == 1 for times in search.world.trained.values())


def test_gpu_hours_count_confirmations() -> None:
    resources = {"gpus_per_worker": 1.0}
    space = confirming(1, 2, budget={"gpu_hours": 400 / HOUR}, resources=resources)
    search = VirtualSearch(space, 100, (2,), curve=lucky, poll_seconds=1.0)
    assert search.start()
    assert len(runs_of(search)) == 2
    spent = sum(trial.user_attrs["seconds"] for trial in search.study.entries())
    assert 320 <= spent <= 400


@pytest.mark.parametrize("budget", [{"target": 0.85}, {"plateau": 2}])
def test_a_target_or_a_plateau_ends_in_confirmation(budget: dict[str, Any]) -> None:
    search = VirtualSearch(confirming(1, 2, budget=budget), 50, (2,), curve=lucky)
    assert search.start()
    assert runs_of(search) == [(0, 1), (0, 2)]
    assert len(search.trials) < 8
    assert all(trial.state == TrialState.COMPLETE for trial in search.study.entries())
    assert search.driver.ended_by is not None
    assert next(iter(budget)) in search.driver.ended_by


def test_a_failed_confirmation_is_left_out_and_tried_again_when_asked() -> None:
    fails = True

    def curve(number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
        if fails and parameters.get("seed") == 1:
            raise ValueError("bad luck")
        return lucky(number, parameters)

    search = VirtualSearch(confirming(1, 2), 4, (1,), curve=curve)
    assert search.start()
    assert search.driver.is_finished
    assert len(confirmed(search.study.entries())[0].runs) == 1
    fails = False
    assert search.study.retry_failed() == 1
    assert search.study.retry_failed() == 0
    assert search.start()
    assert runs_of(search) == [(0, 1), (0, 2), (0, 1)]
    assert len(confirmed(search.study.entries())[0].runs) == 2
    assert len(search.trials) == 2


@pytest.mark.parametrize("kind", ["worker", "recall"])
def test_a_confirmation_lost_before_its_first_epoch_is_taken_up_again(kind: Any) -> None:
    search = VirtualSearch(confirming(1, 2), 4, (1,), [Fault(at=85.0, kind=kind)], lucky)  # it began at 80
    assert search.start()
    assert search.world.faults == []
    assert runs_of(search) == [(0, 1), (0, 2)]
    assert len(search.study.entries()) == 4


def test_wrong_settings_are_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"confirm: top=3 with seeds=4 takes 12 of 14 trials, and leaves 2 .*allow 15"
    ):
        check_confirm(confirming(3, 4), 14)
    check_confirm(confirming(3, 4), 15)
    check_confirm(confirming(0, 4), 1)
    values = make_space().plain() | {"confirm": {"top": 1}, "objectives": ["R1@0.5", "mIoU"]}
    with pytest.raises(ConfigError, match="confirm finds the best by one value, and there are several objectives"):
        build(SearchSpace, values, "space.yaml")


@pytest.mark.parametrize("note", [{CONFIRMS: 9, SEED: 1}, {CONFIRMS: 0}, {SEED: 1}, {CONFIRMS: 1, SEED: 1}])
def test_a_confirmation_of_no_trial_is_refused(note: dict[str, Any]) -> None:
    space = make_space()
    stranger = entry(1, 0.5)
    stranger.user_attrs = {ROLE: CONFIRMATION, **note}
    with pytest.raises(ValueError, match="trial 1 confirms no trial, or under no seed"):
        check_study(space, BASE, [entry(0, 0.5), stranger], [StudyDirection.MAXIMIZE], {})
