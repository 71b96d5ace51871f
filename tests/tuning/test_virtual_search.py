"""What a search decides, whatever goes wrong: random scripts of faults on the virtual engine."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from cdn_tune.errors import SearchError
from cdn_tune.tuning.engine.virtual.engine import Fault
from cdn_tune.tuning.study.failures import LOST
from cdn_tune.tuning.study.ranking import FINISHED, ranking, superseded

from .virtual_search import EPOCHS, VirtualSearch, make_space

RULES: list[dict[str, Any]] = [
    {"name": "none"},
    {"name": "asha", "min_resource": 1, "reduction_factor": 2},
    {"name": "median", "startup_trials": 1},
    {"name": "patience", "patience": 1},
    {"name": "hyperband", "min_resource": 1, "reduction_factor": 2},
]
KINDS = ("worker", "worker", "node", "unfit", "add", "recall", "fail", "vanish", "halt")
FAULTS = st.builds(Fault, at=st.floats(0.0, 12.0), kind=st.sampled_from(KINDS), which=st.integers(0, 3))
MANY = settings(
    max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
STARTS = 40


def run_to_the_end(search: VirtualSearch, kills: list[int]) -> None:
    """Starts the search again and again, as a user would, until it is finished."""
    for start in range(STARTS):
        try:
            lived = search.start(kills[start] if start < len(kills) else None)
        except SearchError:  # no slot is left: a node is added
            search.world.nodes[100 + start] = 1
            continue
        if lived and search.driver.is_finished:
            return
        if lived and not search.study.halted:
            raise AssertionError("the engine returned, but trials are left and nothing has halted the search")
    raise AssertionError(f"not finished after {STARTS} starts: {search.logs}")


def check_accounts(search: VirtualSearch) -> None:
    """Every trial is on record exactly once, trained exactly as far as its state says, in one place at a time."""
    trials = search.trials
    numbers = [trial.number for trial in trials]
    assert len(numbers) == len(set(numbers))
    again = superseded(trials)
    assert len([number for number in numbers if number not in again]) == search.limit
    assert all(trial.state in FINISHED for trial in trials)
    assert all(times == 1 for times in search.world.trained.values()), "an epoch with a checkpoint was trained again"
    for trial in trials:
        epochs = [epoch for number, epoch in search.world.trained if number == trial.number]
        reported = sorted(trial.intermediate_values)
        assert reported == list(range(1, len(reported) + 1))
        assert len(epochs) in (len(reported), len(reported) + 1), "at most the epoch being reported is not on record"
        if trial.state == TrialState.COMPLETE:
            assert len(reported) == EPOCHS
            assert trial.values == [max(trial.intermediate_values.values())]
        if trial.state == TrialState.PRUNED:
            assert 0 < len(reported) < EPOCHS
        if trial.user_attrs.get("failure") == LOST:
            lost = Counter((what, number) for _, what, number in search.logs)
            losses = lost["lost (worker)", trial.number]
            assert losses > search.space.max_failures or lost["lost (node)", trial.number] >= 10
    best = [trial.number for trial in ranking(trials)][: search.space.keep]
    assert list(search.driver.retention.records) == best
    assert set(search.files.kept) == set(best)


@st.composite
def scripts(draw: Any) -> tuple[VirtualSearch, list[int]]:
    """A search, what goes wrong in it, and the writes at which its drivers die."""
    space = make_space(
        early_stopping=draw(st.sampled_from(RULES)),
        sampler={"name": draw(st.sampled_from(["random", "random", "qmc", "tpe"])), "startup_trials": 2},
        max_failures=draw(st.integers(0, 2)),
        keep=draw(st.integers(1, 2)),
    )
    slots = draw(st.lists(st.integers(1, 2), min_size=1, max_size=2))
    faults = draw(st.lists(FAULTS, max_size=6))
    kills = draw(st.lists(st.integers(0, 60), max_size=3))
    return VirtualSearch(space, draw(st.integers(1, 4)), slots, faults, start_seconds=0.25), kills


@MANY
@given(scripts())
def test_every_trial_is_accounted_for_exactly_once(script: tuple[VirtualSearch, list[int]]) -> None:
    search, kills = script
    run_to_the_end(search, kills)
    check_accounts(search)
