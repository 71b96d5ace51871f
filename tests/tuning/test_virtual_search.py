"""What a search decides, whatever goes wrong: random scripts of faults on the virtual engine."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from cdn_tune.errors import SearchError
from cdn_tune.tuning.engine.virtual.engine import CurvePoint, Fault
from cdn_tune.tuning.storage.journal import RunJournal
from cdn_tune.tuning.study.failures import LOST
from cdn_tune.tuning.study.ranking import (
    CONFIRMATION,
    CONFIRMS,
    FINISHED,
    SEED,
    by_value,
    confirmed,
    models,
    ranking,
    role_of,
    superseded,
    trained,
    value_of,
)

from .virtual_search import EPOCHS, VirtualSearch, make_space

RULES: list[dict[str, Any]] = [
    {"name": "none"},
    {"name": "asha", "min_resource": 1, "reduction_factor": 2},
    {"name": "median", "startup_trials": 1},
    {"name": "patience", "patience": 1},
    {"name": "curve", "startup_trials": 1, "chance": 0.5},
    {"name": "hyperband", "min_resource": 1, "reduction_factor": 2},
    {"name": "asha", "mode": "promote", "min_resource": 1, "reduction_factor": 2},
    {"name": "hyperband", "mode": "promote", "min_resource": 1, "reduction_factor": 2},
    {"name": "asha", "mode": "promote", "unit": "seconds", "min_resource": 2, "reduction_factor": 2},
    {"name": "asha", "mode": "promote", "metrics": ["mIoU", "R1@0.5"], "combine": "all", "reduction_factor": 2},
]
PAUSING = [rule for rule in RULES if "mode" in rule]
KINDS = ("worker", "worker", "node", "unfit", "add", "recall", "fail", "vanish", "halt")
FAULTS = st.builds(Fault, at=st.floats(0.0, 12.0), kind=st.sampled_from(KINDS), which=st.integers(0, 3))
EXAMPLES = int(os.environ.get("CDN_TUNE_EXAMPLES", "300"))  # scripts of each of the three random tests
MANY = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
STARTS = 40
CHECKPOINTS = st.sampled_from(["epoch", 0.04, 10.0])  # every epoch, every other one, only those that are needed


def run_to_the_end(search: VirtualSearch, kills: list[int], stops: Sequence[float] = ()) -> None:
    """Starts the search again and again, as a user would, until it is finished."""
    for start in range(STARTS):
        stop_after = stops[start] if start < len(stops) else math.inf
        try:
            lived = search.start(kills[start] if start < len(kills) else None, stop_after)
        except SearchError:  # no slot is left: a node is added
            search.world.nodes[100 + start] = 1
            continue
        if lived and (search.driver.is_finished or search.driver.ended_by is not None):
            return
        if lived and not search.study.halted and not search.flag.raised:
            raise AssertionError(f"the engine returned, but trials are left, nothing has halted: {search.logs}")
    raise AssertionError(f"not finished after {STARTS} starts: {search.logs}")


def check_accounts(search: VirtualSearch) -> None:
    """Every trial is on record exactly once, trained exactly as far as its state says, in one place at a time."""
    trials = trained(search.study.entries())
    numbers = [trial.number for trial in trials]
    assert len(numbers) == len(set(numbers))
    again = superseded(trials)
    proposed = search.limit - search.space.confirm.trials
    assert len([trial.number for trial in search.trials if trial.number not in again]) == proposed
    assert all(trial.state in FINISHED for trial in trials)
    check_work(search)
    for trial in trials:
        epochs = [epoch for number, epoch in search.world.trained if number == trial.number]
        reported = sorted(trial.intermediate_values)
        if search.space.early_stopping.unit == "seconds":  # of equal epochs, in milliseconds
            assert reported == pytest.approx([reported[0] * epoch for epoch in range(1, len(reported) + 1)], abs=4)
        else:
            assert reported == list(range(1, len(reported) + 1))
        assert len(epochs) in (len(reported), len(reported) + 1), "at most the epoch being reported is not on record"
        if trial.state == TrialState.COMPLETE:
            assert len(reported) == EPOCHS
            assert trial.values == [max(trial.intermediate_values.values())]
        if trial.state == TrialState.PRUNED:
            assert 0 < len(reported) < EPOCHS
            assert role_of(trial) == "trial", "a confirmation was judged by the stopping rule"
        if trial.user_attrs.get("failure") == LOST:
            lost = Counter((what, number) for _, what, number in search.logs)
            losses = lost["lost (worker)", trial.number]
            assert losses > search.space.max_failures or lost["lost (node)", trial.number] >= 10
    check_confirmations(search)
    best = [trial.number for trial in models(trials)][: max(search.space.keep, len(confirmed(trials)))]
    assert list(search.driver.retention.records) == best
    assert set(search.files.kept) == set(best)


def check_work(search: VirtualSearch) -> None:
    """No epoch that a checkpoint holds was trained again, and what was to be kept was on disk in time."""
    assert not search.world.wasted, "an epoch with a checkpoint was trained again"
    assert not search.driver.retention.damaged, "a trial ended among the best without its best on disk"
    if search.engine_options.get("checkpoint", "epoch") == "epoch":
        assert all(times == 1 for times in search.world.trained.values())


def check_confirmations(search: VirtualSearch) -> None:
    """The best trials by their own values, and no others, were trained again under each further seed, exactly once."""
    entries, config = search.study.entries(), search.space.confirm
    runs = [trial for trial in entries if role_of(trial) == CONFIRMATION]
    best = by_value(entries)[: config.top]
    expected = [(trial.number, seed) for seed in range(1, config.seeds + 1) for trial in best]
    assert [(trial.user_attrs[CONFIRMS], trial.user_attrs[SEED]) for trial in runs] == expected
    last = max((trial.datetime_complete for trial in search.trials), default=None)
    assert all(last is not None and run.datetime_start >= last for run in runs)
    for trial in ranking(entries):
        values = [value_of(run) for run in runs if run.user_attrs[CONFIRMS] == trial.number and run.values]
        found = confirmed(entries).get(trial.number)
        assert (found is None) == (not values)
        if found is not None:
            assert found.mean == pytest.approx(sum(values) / len(values))  # type: ignore[arg-type]
            assert value_of(found.model) == max(values)  # type: ignore[type-var]


@st.composite
def scripts(draw: Any) -> tuple[VirtualSearch, list[int]]:
    """A search, what goes wrong in it, and the writes at which its drivers die."""
    space = make_space(
        early_stopping=draw(st.sampled_from(RULES)),
        sampler={"name": draw(st.sampled_from(["random", "random", "qmc", "tpe"])), "startup_trials": 2},
        max_failures=draw(st.integers(0, 2)),
        keep=draw(st.integers(1, 2)),
        confirm={"top": draw(st.sampled_from([0, 0, 1, 2])), "seeds": draw(st.integers(1, 2))},
    )
    slots = draw(st.lists(st.integers(1, 2), min_size=1, max_size=2))
    faults = draw(st.lists(FAULTS, max_size=6))
    kills = draw(st.lists(st.integers(0, 60), max_size=3))
    limit = draw(st.integers(1, 4)) + space.confirm.trials
    return VirtualSearch(space, limit, slots, faults, start_seconds=0.25, checkpoint=draw(CHECKPOINTS)), kills


@MANY
@given(scripts())
def test_every_trial_is_accounted_for_exactly_once(script: tuple[VirtualSearch, list[int]]) -> None:
    search, kills = script
    run_to_the_end(search, kills)
    check_accounts(search)


@st.composite
def stopped_scripts(draw: Any) -> tuple[VirtualSearch, list[int], list[float]]:
    """A search of one or two objectives that is stopped and killed, and that learns from what it has."""
    several = draw(st.booleans())
    space = make_space(
        early_stopping=draw(st.sampled_from([*RULES[:3], *PAUSING])),
        sampler={
            "name": draw(st.sampled_from(["tpe", "nsga2" if several else "cmaes", "random"])),
            "startup_trials": 1,
        },
        keep=draw(st.integers(1, 3)),
        **(
            {"objectives": [{"metric": "R1@0.5"}, {"metric": "mIoU"}]}
            if several
            else {"confirm": {"top": draw(st.integers(0, 2)), "seeds": 1}}
        ),
    )
    faults = draw(
        st.lists(st.builds(Fault, at=st.floats(0, 9), kind=st.sampled_from(["worker", "node", "recall"])), max_size=3)
    )
    kills = draw(st.lists(st.integers(0, 80), max_size=2))
    stops = draw(st.lists(st.floats(0, 6), max_size=3))
    limit = draw(st.integers(1, 4)) + space.confirm.trials
    return VirtualSearch(space, limit, [draw(st.integers(1, 2))], faults, checkpoint=draw(CHECKPOINTS)), kills, stops


@MANY
@given(stopped_scripts())
def test_a_stopped_search_goes_on_where_it_was(script: tuple[VirtualSearch, list[int], list[float]]) -> None:
    search, kills, stops = script
    run_to_the_end(search, kills, stops)
    trials = trained(search.study.entries())
    assert len(search.trials) == search.limit - search.space.confirm.trials
    assert all(trial.state in FINISHED for trial in trials)
    check_confirmations(search)
    check_work(search)
    if search.study.directions[1:]:
        assert min(1, len(ranking(trials))) <= len(search.files.kept) <= search.space.keep
    else:
        best = [trial.number for trial in models(trials)][: max(search.space.keep, len(confirmed(trials)))]
        assert set(search.files.kept) == set(best)
    assert all(trial.user_attrs.get("failure") in (None, LOST) for trial in trials)


@st.composite
def ended_scripts(draw: Any) -> tuple[VirtualSearch, list[int], list[float]]:
    """A search whose trials pause, that a target ends in confirmation or not, and that is stopped and killed."""
    space = make_space(
        early_stopping=draw(st.sampled_from(PAUSING)),
        confirm={"top": draw(st.integers(1, 2)), "seeds": draw(st.integers(1, 2))},
        budget={"target": draw(st.floats(0.2, 1.2))},
    )
    kills = draw(st.lists(st.integers(0, 80), max_size=3))
    stops = draw(st.lists(st.floats(0, 6), max_size=3))
    limit = draw(st.integers(1, 6)) + space.confirm.trials
    return VirtualSearch(space, limit, [draw(st.integers(1, 3))], checkpoint=draw(CHECKPOINTS)), kills, stops


@MANY
@given(ended_scripts())
def test_paused_trials_end_before_the_best_are_confirmed(script: tuple[VirtualSearch, list[int], list[float]]) -> None:
    search, kills, stops = script
    run_to_the_end(search, kills, stops)
    assert all(trial.state in FINISHED for trial in trained(search.study.entries()))
    check_work(search)
    check_confirmations(search)
    whole = [trial for trial in search.study.entries() if role_of(trial) == CONFIRMATION]
    assert all(trial.state == TrialState.COMPLETE for trial in whole)
    reached = [value for value in map(value_of, search.trials) if value is not None]
    if search.driver.ended_by is not None:
        assert max(reached) >= (search.space.budget.target or 0.0)
    else:
        assert len(search.trials) == search.limit - search.space.confirm.trials


@pytest.mark.parametrize("again", [0.5, 3.0])
def test_an_epoch_that_is_trained_again_is_on_record_once_whatever_it_takes(again: float) -> None:
    attempts: list[int] = []

    def curve(number: int, _: Any) -> list[CurvePoint]:
        attempts.append(number)
        seconds = 1.0 if len(attempts) == 1 else again
        return [CurvePoint({"R1@0.5": epoch / EPOCHS, "mIoU": 0.0}, seconds) for epoch in range(1, EPOCHS + 1)]

    rule = {"name": "asha", "unit": "seconds", "min_resource": 1000}
    search = VirtualSearch(make_space(early_stopping=rule), 1, (1,), [Fault(2.5, "worker")], curve, checkpoint=10.0)
    assert search.start()
    assert attempts == [0, 0]
    assert search.world.trained == {(0, 1): 2, (0, 2): 2, (0, 3): 1, (0, 4): 1}
    [trial] = search.trials
    assert [value for _, value in sorted(trial.intermediate_values.items())] == [0.25, 0.5, 0.75, 1.0]
    assert sorted(trial.intermediate_values)[:2] == [1000, 2000]


@pytest.mark.parametrize("checkpoint", ["epoch", 10.0])
def test_a_trial_whose_best_model_a_kill_has_lost_is_not_on_record_as_if_it_had_it(checkpoint: str | float) -> None:
    """The budget ends the search while epochs are trained again that were reported before any checkpoint."""
    budget = {"hours": 5.0 / 3600}
    search = VirtualSearch(
        make_space(early_stopping={"name": "none"}, budget=budget),
        1,
        (1,),
        [Fault(4.0, "worker")],
        checkpoint=checkpoint,
    )
    assert search.start()
    [trial] = search.trials
    if checkpoint == "epoch":
        assert trial.state == TrialState.COMPLETE  # it went on after three epochs
        assert search.files.kept.keys() == {0}
    else:
        assert trial.state == TrialState.FAIL
        assert "its best model was lost" in trial.user_attrs["reason"]
        assert not search.files.kept
    assert not search.driver.retention.damaged


@pytest.mark.parametrize("cut", range(0, 4000, 250))
def test_a_journal_cut_anywhere_is_gone_on_with(cut: int, tmp_path: Path) -> None:
    """The machine lost power: the end of the file is missing. Nothing that is on record is lost or run again."""
    path = tmp_path / "study.journal"
    search = VirtualSearch(make_space(early_stopping=RULES[1]), 3)
    search.storage = RunJournal(path)
    assert search.start(stop_after=5.0)
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - cut)])
    search.storage = RunJournal(path)
    run_to_the_end(search, [])
    assert [trial.number for trial in search.trials] == [0, 1, 2]
    assert all(trial.state in FINISHED for trial in search.trials)
    again = VirtualSearch(search.space, 3)
    again.storage, again.world = RunJournal(path), search.world
    assert again.start()
    assert [trial.params for trial in again.trials] == [trial.params for trial in search.trials]
