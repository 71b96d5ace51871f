"""What ends a search before its last trial."""

import random
from datetime import datetime, timedelta

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from cdn_tune.config import BudgetConfig
from cdn_tune.tuning.budget import Tally, end_of
from cdn_tune.tuning.study.ranking import CONFIRMATION, CONFIRMS, PAUSED, ROLE, SEED, as_ended, by_value, own, value_of


def make_trials(seed: int) -> list[FrozenTrial]:
    """Trials in every state, paused ones and confirmations among them, that end in another order than they began."""
    draw, trials = random.Random(seed), []
    for number in range(60):
        state = draw.choice([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING])
        values = [draw.choice([0.1, 0.2, draw.random()]) for _ in range(draw.randrange(4))]
        notes = {"seconds": draw.random(), PAUSED: draw.randrange(2)}
        if draw.random() < 0.2:
            notes |= {ROLE: CONFIRMATION, CONFIRMS: 0, SEED: number}
        trial = create_trial(
            state=TrialState.PRUNED if state == TrialState.COMPLETE and not values else state,
            value=max(values) if state == TrialState.COMPLETE and values else None,
            intermediate_values=dict(enumerate(values, start=1)),
            user_attrs=notes,
        )
        trial.number = number
        if trial.state.is_finished():
            trial.datetime_complete = datetime(2026, 1, 1) + timedelta(seconds=draw.random())
        trials.append(trial)
    return trials


@pytest.mark.parametrize("seed", range(5))
def test_a_tally_that_is_kept_up_knows_what_all_trials_tell(seed: int) -> None:
    trials = make_trials(seed)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    ended = sorted((t for t in trials if t.state.is_finished()), key=lambda trial: trial.datetime_complete)
    kept = Tally(top=3)
    for trial in ended:
        kept.add(trial)
    for tally in (kept, Tally(trials, 3)):
        assert tally.seconds(running) == pytest.approx(sum(trial.user_attrs["seconds"] for trial in trials))
        assert tally.reached(running) == max(value for value in map(value_of, own(trials)) if value is not None)
        assert tally.best(running) == by_value(map(as_ended, trials))[:3]
        with_results = [trial for trial in own(ended) if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        values = [value_of(trial) or -1.0 for trial in with_results]
        assert tally.since_best == len(values) - 1 - values.index(max(values))


def test_budgets_end_at_what_was_spent_and_reached() -> None:
    trials = make_trials(0)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    tally = Tally(trials)
    spent, best = 2 * tally.seconds(running) / 3600, tally.reached(running)
    for budget, is_over in (
        ({"hours": 1.0}, True),
        ({"hours": 1.1}, False),
        ({"gpu_hours": spent}, True),
        ({"gpu_hours": 1.01 * spent}, False),
        ({"target": best}, True),
        ({"target": best + 1e-6}, False),
        ({"plateau": max(1, tally.since_best)}, tally.since_best > 0),
        ({"plateau": tally.since_best + 1}, False),
    ):
        assert (end_of(BudgetConfig(**budget), tally, running, 3600.0, 2.0) is not None) == is_over, budget
