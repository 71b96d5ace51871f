"""Early stopping: who is compared with whom, at which step, and from when on."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from cdn_tune.config import SearchSpace
from cdn_tune.training.reports import pack_ious
from cdn_tune.tuning.study.filtered_study import seen, stored_study
from cdn_tune.tuning.study.ranking import COPY, LEARNED, PAUSED, REFUSED, ROLE
from cdn_tune.tuning.study.rungs import COMPARED, Rungs, brackets
from cdn_tune.tuning.study.stopping_rules import QUERY_IOUS, PatiencePruner, build_pruner, competitors, should_prune

PRUNING = ("asha", "hyperband", "median", "percentile", "wilcoxon", "patience", "curve")
QUERIES = np.clip(np.random.default_rng(0).beta(2, 2, size=256), 0, 1)


class Trials:
    """A study filled by hand, and the opinion of pruner or rungs on one more trial."""

    def __init__(self, name: str, directions: int = 1, **settings: Any) -> None:
        settings = {"startup_trials": 1, "reduction_factor": 2, "patience": 1, "chance": 0.5, **settings}
        self.space = SearchSpace.model_validate(
            {
                "name": "s",
                "experiment": "x",
                "parameters": {"optim.lr": {"type": "float", "low": 0.1, "high": 1.0}},
                "early_stopping": {"name": name, **settings},
            }
        )
        self.study = stored_study(optuna.storages.InMemoryStorage(), "s", ["maximize", "minimize"][:directions])
        self.longest = 90 if settings.get("unit") == "step" else 9
        self.restart()

    def restart(self) -> None:
        """Has another process go on with the search."""
        self.pruner = build_pruner(self.space)
        self.rungs = Rungs(self.space, self.longest, self.study)

    def add(
        self, values: Mapping[int, float], state: TrialState = TrialState.COMPLETE, ious: Any = None, **attributes: Any
    ) -> None:
        """Adds a trial that has reported these values, with its IoUs per query."""
        queries = {} if ious is None else {f"{QUERY_IOUS}:{step}": pack_ious(torch.from_numpy(ious)) for step in values}
        known = state == TrialState.COMPLETE
        self.study.add_trial(
            create_trial(
                state=state,
                values=[max(values.values()), 1.0][: len(self.study.directions)] if known else None,
                intermediate_values=dict(values),
                user_attrs={**queries, **attributes},
            )
        )
        self.restart()

    def lags(self, number: int, step: int, is_last: bool = False) -> bool:
        """Decides on a trial that has reported a step, as `Study.report` does."""
        if self.rungs.decide:
            return self.rungs.lags(number, step, is_last)
        return should_prune(self.study, self.pruner, self.study.trial(number), self.space, is_last)

    def decide(self, values: Mapping[int, float], ious: Any = None, is_last: bool = False) -> list[bool]:
        """Runs one more trial; returns the decision after each report."""
        number = self.study.ask().number
        decisions = []
        for step, value in values.items():
            if ious is not None:
                self.study.set_attributes(number, {f"{QUERY_IOUS}:{step}": pack_ious(torch.from_numpy(ious))})
            self.study.report(number, step, value)
            decisions.append(self.lags(number, step, is_last))
        return decisions


GOOD = {epoch: 0.5 + epoch / 100 for epoch in range(1, 10)}
BAD = dict.fromkeys(range(1, 10), 0.1)


def fill(trials: Trials, **attributes: Any) -> None:
    for _ in range(4):
        trials.add(GOOD, ious=QUERIES, **attributes)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("name", PRUNING)
def test_a_bad_trial_is_pruned_but_not_before_min_resource(name: str, directions: int) -> None:
    for min_resource in (1, 4):
        trials = Trials(name, directions, min_resource=min_resource)
        fill(trials)
        decisions = trials.decide(BAD, ious=QUERIES / 2)
        for _ in range(12 if name == "hyperband" else 0):  # until it is in the bracket that prunes first
            fill(trials)
            decisions = min(decisions, trials.decide(BAD), key=first_stop)
        first = 3 if name == "patience" and min_resource == 1 else min_resource
        assert first_stop(decisions) == first


def first_stop(decisions: list[bool]) -> int:
    """After which report a trial is stopped for the first time; 99: never. Hyperband's brackets differ in it."""
    return decisions.index(True) + 1 if True in decisions else 99


@pytest.mark.parametrize("name", PRUNING)
def test_a_good_trial_goes_on_and_none_is_pruned_at_its_end(name: str) -> None:
    trials = Trials(name)
    fill(trials)
    assert not any(trials.decide({epoch: 0.7 + epoch / 100 for epoch in range(1, 10)}, ious=QUERIES))
    assert not any(trials.decide(BAD, ious=QUERIES / 2, is_last=True))


@pytest.mark.parametrize("attributes", [{ROLE: LEARNED}, {ROLE: COPY}, {ROLE: REFUSED}, "retried"])
@pytest.mark.parametrize("name", ["asha", "median", "percentile", "wilcoxon", "curve"])
def test_entries_that_are_no_trials_of_this_run_do_not_count(name: str, attributes: Any) -> None:
    trials = Trials(name)
    if attributes == "retried":  # failed, and tried again by trials that lag
        for number in range(4):
            trials.add(GOOD, TrialState.FAIL, ious=QUERIES)
            trials.add(BAD, ious=QUERIES / 2, retry_of=2 * number)
    else:
        fill(trials, **attributes)
    assert not any(trials.decide(BAD, ious=QUERIES / 2))


def create_numbered(number: int) -> optuna.trial.FrozenTrial:
    trial = create_trial(state=TrialState.PRUNED)
    trial.number = number
    return trial


def stops(trials: Trials, reports: int, unit: int = 1) -> set[int]:
    """Where bad trials are stopped first, once there are good ones: one place for each of Hyperband's brackets."""
    good = {unit * step: 0.5 + step / 10**6 for step in range(1, reports + 1)}
    trials.add(good)
    found = set()
    for _ in range(60):
        trials.decide(good)
        found.add(first_stop(trials.decide(dict.fromkeys(good, 0.1))))
    return {unit * step for step in found if step <= reports}


def test_hyperband_has_all_brackets() -> None:
    trials = Trials("hyperband", reduction_factor=3)
    trials.longest = 27
    assert stops(trials, 27) == {1, 3, 9, 27}
    in_steps = Trials("hyperband", unit="step", min_resource=10, reduction_factor=3)  # of 90 steps
    assert stops(in_steps, 9, unit=10) == {10, 30, 90}
    with pytest.raises(ValueError, match="needs those of the longest trial"):
        Rungs(in_steps.space, None, in_steps.study)
    longer = Trials("hyperband", min_resource=100)  # than a trial: none is stopped, nothing breaks
    fill(longer)
    assert not any(longer.decide(BAD))


@pytest.mark.parametrize(("longest", "factor", "expected"), [(1, 2, 1), (2, 2, 2), (3, 2, 2), (243, 3, 6), (242, 3, 5)])
def test_hyperband_counts_brackets_in_whole_numbers(longest: int, factor: int, expected: int) -> None:
    """By logarithms, as Optuna counts, 243 = 3**5 has one too few."""
    assert [brackets(least, least * longest, factor) for least in (1, 3, 10)] == [expected] * 3


def optunas(name: str, factor: int) -> BasePruner:
    """Returns Optuna's own pruner for trials of 27 reports."""
    if name == "asha":
        return SuccessiveHalvingPruner(1, factor)
    return HyperbandPruner(1, 28, factor)


def held(rungs: Rungs) -> dict[int, list[float]]:
    """Returns the values by which trials are compared, from the first rung to the last, by trial."""
    found: dict[int, list[float]] = {}
    for _, values in sorted(rungs._values.items()):
        for number, [value] in values.items():
            found.setdefault(number, []).append(value)
    return found


def held_by_optuna(trials: list[FrozenTrial]) -> dict[int, list[float]]:
    attributes = {trial.number: trial.system_attrs for trial in trials if trial.state != TrialState.FAIL}
    found = {
        number: [each[f"completed_rung_{place}"] for place in range(sum(key.startswith("completed") for key in each))]
        for number, each in attributes.items()
    }
    return {number: values for number, values in found.items() if values}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["asha", "hyperband"])
def test_halving_decides_as_optunas_pruners_do(name: str, seed: int) -> None:
    """Side by side, over trials that run at once, skip reports, have equal values or none, fail and are tried again."""
    draw = random.Random(seed)
    factor = draw.choice([2, 3])
    ours, theirs = Trials(name, reduction_factor=factor), Trials(name, reduction_factor=factor)
    ours.longest = 27
    ours.restart()
    decided = []
    running: dict[int, int] = {}
    for _ in range(400):
        if len(running) < 8:
            retried = [t.number for t in ours.study.get_trials() if t.state == TrialState.FAIL and draw.random() < 0.2]
            for trials in (ours, theirs):
                if retried:
                    trials.study.enqueue_trial({}, user_attrs={"retry_of": retried[0]})
                running[trials.study.ask().number] = 0
        number = draw.choice(sorted(running))
        running[number] += draw.choice([1, 1, 2])
        value = draw.choice([0.1, 0.2, 0.3, draw.random()]) if draw.random() < 0.97 else math.nan
        for trials in (ours, theirs):
            trials.study.report(number, running[number], value)
        if draw.random() < 0.03:  # another process goes on with the search
            ours.restart()
        view = seen(theirs.study, not_failed, [StudyDirection.MAXIMIZE])
        decided.append(optunas(name, factor).prune(view, theirs.study.trial(number)))
        assert ours.lags(number, running[number]) == decided[-1]
        assert decided[-1] or not ours.lags(number, running[number])  # told again, it is not judged again
        if decided[-1] or running[number] >= 27 or draw.random() < 0.03:
            is_complete = running.pop(number) >= 27
            state = TrialState.PRUNED if decided[-1] else TrialState.COMPLETE if is_complete else TrialState.FAIL
            for trials in (ours, theirs):
                trials.study.tell(number, 0.5 if state == TrialState.COMPLETE else None, state=state)
            if state == TrialState.FAIL:
                ours.rungs.remove(number)
    assert 20 < sum(decided) < 380
    assert held(ours.rungs) == held_by_optuna(theirs.study.get_trials())
    ours.restart()
    assert held(ours.rungs) == held_by_optuna(theirs.study.get_trials())
    assert not any(PAUSED in trial.user_attrs for trial in ours.study.get_trials())


def not_failed(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in competitors(trials) if trial.state != TrialState.FAIL]


def test_a_report_at_a_rung_goes_through_no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = Trials("asha")
    fill(trials)
    number = trials.study.ask().number
    trials.study.report(number, 1, 0.1)
    monkeypatch.setattr(type(trials.study), "get_trials", None)
    assert trials.lags(number, 1)


def test_rungs_that_an_earlier_version_recorded_are_not_judged_again() -> None:
    """It recorded a value at each rung that a trial came to, under the names of Optuna's pruners."""
    trials = Trials("asha")
    for state, values, rungs in (
        (TrialState.RUNNING, {1: 0.1, 2: 0.1}, 2),
        (TrialState.PRUNED, {2: 0.2}, 1),  # past two rungs at once, and stopped at the first
        (TrialState.RUNNING, {1: 0.1, 2: 0.15}, 1),  # killed between its report and the decision
    ):
        attributes = {f"completed_rung_{place}": values[max(values)] for place in range(rungs)}
        trials.study.add_trial(create_trial(state=state, intermediate_values=values, system_attrs=attributes))
    trials.restart()
    assert held(trials.rungs) == {0: [0.1, 0.1], 1: [0.2], 2: [0.1, 0.15]}
    fill(trials)
    assert [trials.lags(number, 2) for number in (0, 2)] == [False, True]
    trials.study.report(0, 4, 0.1)
    assert trials.lags(0, 4)


@pytest.mark.parametrize("restarted", [True, False])
def test_a_trial_at_its_end_counts_at_its_last_rung(restarted: bool) -> None:
    trials = Trials("asha")
    number = trials.study.ask().number
    trials.study.report(number, 2, 0.5)
    assert not trials.lags(number, 2, is_last=True)
    trials.study.tell(number, 0.5)
    if restarted:
        trials.restart()
    assert held(trials.rungs) == {number: [0.5, 0.5]}
    assert trials.decide({1: 0.6, 2: 0.4}) == [False, True]


@pytest.mark.parametrize("name", ["median", "percentile"])
def test_a_report_is_compared_with_others_last_reports_before_it(name: str) -> None:
    """Trials with other batch sizes report at other optimiser steps."""
    trials = Trials(name, unit="step", min_resource=10, percentile=50.0)
    trials.add({40: 0.3, 80: 0.6, 120: 0.9})
    trials.add({30: 0.3, 60: 0.5, 90: 0.7})
    # At 25 nobody has reported; at 50 they had reached 0.3; at 85 0.5 and 0.6; at 200 they ended at 0.7 and 0.9.
    values = {25: 0.1, 50: 0.4}
    assert trials.decide(values) == [False, False]
    assert trials.decide({**values, 85: 0.5}) == [False, False, True]
    assert trials.decide({**values, 85: 0.56, 200: 0.79}) == [False, False, False, True]
    assert trials.decide({**values, 85: 0.56, 200: 0.81}) == [False] * 4


def test_asha_counts_steps() -> None:
    trials = Trials("asha", unit="step", min_resource=50)
    for _ in range(4):
        trials.add({30: 0.05, 60: 0.5})
    assert trials.decide({40: 0.1, 80: 0.1}) == [False, True]


def test_wilcoxon_prunes_the_significantly_worse_only() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.1, size=QUERIES.size)
    for shift, expected in ((0.05, False), (0.0, False), (-0.05, True), (-0.002, False)):
        trials = Trials("wilcoxon", p_value=0.01)
        trials.add({1: 0.4, 2: 0.5}, ious=QUERIES)
        trials.add({1: 0.2, 2: 0.3}, ious=QUERIES / 4)  # not the best one: not compared with
        assert trials.decide({1: 0.3}, ious=np.clip(QUERIES + shift + noise, 0, 1)) == [expected]
    trials = Trials("wilcoxon")
    trials.add({1: 0.5}, ious=QUERIES)
    assert trials.decide({1: 0.1, 2: 0.1}, ious=QUERIES) == [False, False]  # equal in every query


def test_wilcoxon_compares_at_the_same_step_or_the_last_before() -> None:
    trials = Trials("wilcoxon")
    trials.add({2: 0.5, 4: 0.6}, ious=QUERIES)
    assert trials.decide({1: 0.1, 2: 0.1, 3: 0.1, 9: 0.1}, ious=QUERIES / 2) == [False, True, True, True]


def test_wilcoxon_without_queries_prunes_nobody() -> None:
    trials = Trials("wilcoxon")
    assert trials.decide(BAD, ious=QUERIES) == [False] * 9  # nobody to compare with
    trials.add(GOOD)
    assert trials.decide(BAD, ious=QUERIES / 2) == [False] * 9
    trials.add({1: 0.9}, ious=QUERIES[:9])  # of other queries
    assert trials.decide(BAD, ious=QUERIES / 2) == [False] * 9


def test_patience_counts_reports_without_a_rise() -> None:
    trials = Trials("patience", patience=2)
    assert trials.decide(dict(enumerate([0.1, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.3], start=1))) == [False] * 7 + [True]
    assert not PatiencePruner(0).prune(trials.study, create_numbered(0))


def curve_trials(curves: list[Mapping[int, float]], **settings: Any) -> Trials:
    trials = Trials("curve", **settings)
    for values in curves:
        trials.add(values)
    return trials


# At epoch 1 they are at 1/4, 3/5 and 1/6 of their ends, at epoch 2 at 1/2, 4/5 and 1/2; the best ends at 0.8.
CURVES = [{1: 0.2, 2: 0.4, 3: 0.8}, {1: 0.3, 2: 0.4, 3: 0.5}, {1: 0.1, 2: 0.3, 3: 0.6}]


@pytest.mark.parametrize(
    ("chance", "values", "expected"),
    [
        (0.25, {1: 0.12, 2: 0.41}, [True, False]),  # it would have to be at 0.12 / 0.8 < 1/6, as nobody was
        (0.25, {1: 0.14, 2: 0.39}, [False, True]),
        (0.25, {1: 0.14, 2: 0.41}, [False, False]),
        (0.49, {1: 0.14}, [False]),  # one of three was: at 2/4
        (0.5, {1: 0.14}, [True]),
        (0.5, {1: 0.19}, [True]),
        (0.5, {1: 0.21}, [False]),
    ],
)
def test_curve_stops_what_would_have_to_be_less_far_than_others_were(
    chance: float, values: dict[int, float], expected: list[bool]
) -> None:
    assert curve_trials(CURVES, chance=chance).decide(values) == expected


def test_curve_lets_go_on_what_is_as_good_as_the_best_was() -> None:
    """Of eleven curves one was a late riser; that it was the best counts for more than that it was one of eleven."""
    trials = curve_trials([*({1: 0.5, 2: 0.6} for _ in range(10)), {1: 0.1, 2: 0.9}], chance=0.2)
    assert trials.decide({1: 0.1}) == [False]
    assert trials.decide({1: 0.099}) == [True]


def test_curve_knows_nothing_of_what_is_still_at_zero() -> None:
    for first, expected in ((0.0, False), (0.1, True)):
        assert curve_trials([*[{1: first, 2: 0.6}] * 5, {1: 0.2, 2: 0.7}]).decide({1: 0.0}) == [expected]


@pytest.mark.parametrize(
    ("chance", "startup", "needed"), [(0.5, 0, 1), (0.5, 2, 2), (0.3, 1, 3), (0.1, 5, 9), (0.1, 12, 12), (0.05, 5, 19)]
)
def test_curve_stops_nothing_until_enough_trials_are_complete(chance: float, startup: int, needed: int) -> None:
    """Of n equally likely shares the smallest is this trial's with a probability of 1 / (n + 1)."""
    trials = curve_trials([GOOD] * (needed - 1), chance=chance, startup_trials=startup)
    for state in (TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING):
        trials.add(GOOD, state)
    assert trials.decide(BAD) == [False] * 9
    trials.add(GOOD)
    assert trials.decide(BAD) == [True] * 8 + [False]  # by the ninth all have ended


def test_curve_compares_with_others_last_reports_before_it() -> None:
    """Trials with other batch sizes report at other optimiser steps, and end at others."""
    trials = curve_trials([{30: 0.3, 60: 0.5}, {40: 0.4, 80: 0.5, 120: 0.9}], unit="step", min_resource=10, chance=0.34)
    # At 50 they were at 3/5 and 4/9 of their ends; at 70 the first one has ended, and one curve is too few.
    assert trials.decide({20: 0.0, 50: 0.39}) == [False, True]
    assert trials.decide({20: 0.0, 50: 0.41}) == [False, False]
    assert trials.decide({70: 0.0}) == [False]


@pytest.mark.parametrize(("combine", "stopped"), [("any", True), ("all", False)])
def test_curve_reads_each_of_several_metrics(combine: str, stopped: bool) -> None:
    """The trial is as good as the other in the one, and lags in the other, in which that has another value."""
    trials = Trials("curve", metrics=["R1@0.5", "mIoU"], combine=combine)
    trials.add({1: 0.5, 2: 0.6}, **{f"{COMPARED}:1": [0.5, 0.8], f"{COMPARED}:2": [0.6, 0.9]})
    number = trials.study.ask().number
    for mean, expected in ((0.8, False), (0.7, stopped)):
        trials.study.set_attributes(number, {f"{COMPARED}:1": [0.5, mean]})
        trials.study.report(number, 1, 0.5)
        assert trials.lags(number, 1) == expected


VALUES = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.7]), min_size=3, max_size=3)


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(VALUES, min_size=1, max_size=12), st.sampled_from([0.1, 0.3, 0.5]))
def test_curve_never_stops_the_best_one_again(values: list[list[float]], chance: float) -> None:
    curves = [dict(enumerate(np.maximum.accumulate(each).tolist(), start=1)) for each in values]
    trials = curve_trials(curves, chance=chance)
    assert not any(trials.decide(max(curves, key=lambda curve: curve[3])))
