"""What TPE is shown of a study with many trials."""

import random

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.tuning.study.filtered_study import violations
from cdn_tune.tuning.study.samplers import for_tpe


def make_trials(count: int) -> list[FrozenTrial]:
    """Complete, pruned and running trials, and failed ones that broke a constraint, in no order of value."""
    draw = random.Random(0)
    trials = []
    for number in range(count):
        state = draw.choice([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING])
        steps = {} if state == TrialState.FAIL else {step: draw.random() for step in range(1, draw.randint(2, 9))}
        value = max(steps.values()) if state == TrialState.COMPLETE else None
        attributes = {"constraints:memory": 1.0} if state == TrialState.FAIL else {}
        trial = optuna.create_trial(state=state, value=value, intermediate_values=steps, system_attrs=attributes)
        trial.number = number
        trials.append(trial)
    return trials


def test_tpe_is_shown_the_best_and_the_latest_of_many() -> None:
    trials = make_trials(600)
    shown = for_tpe(trials, [StudyDirection.MAXIMIZE], {})
    complete = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: -t.value)
    expected = {trial.number for trial in (*complete[:50], *trials[-150:])}
    assert [trial.number for trial in shown] == sorted(expected)
    broken = [trial for trial in shown if trials[trial.number].state == TrialState.FAIL]
    assert broken
    assert all(trial.state == TrialState.PRUNED and not trial.intermediate_values for trial in broken)
    assert all(violations(trial) == {"memory": 1.0} for trial in broken)


def test_tpe_is_shown_all_of_few() -> None:
    trials = make_trials(200)
    assert [trial.number for trial in for_tpe(trials, [StudyDirection.MAXIMIZE], {})] == list(range(200))


def test_a_long_pruned_trial_is_better_than_a_short_one() -> None:
    """Where too few are complete, pruned ones fill up: TPE takes the longest for the best of them."""
    trials = []
    for number in range(400):
        values = dict.fromkeys(range(1, 3 if number % 2 else 5), 1 - number / 400)
        trial = optuna.create_trial(state=TrialState.PRUNED, intermediate_values=values)
        trial.number = number
        trials.append(trial)
    early = [trial.number for trial in for_tpe(trials, [StudyDirection.MAXIMIZE], {}) if trial.number < 250]
    assert early == list(range(0, 100, 2))
