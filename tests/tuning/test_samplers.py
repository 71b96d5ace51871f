"""What TPE is shown of a study with many trials."""

import random
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.tuning.engine.virtual.engine import Fault
from cdn_tune.tuning.study import samplers
from cdn_tune.tuning.study.filtered_study import violations
from cdn_tune.tuning.study.samplers import for_tpe

from .virtual_search import VirtualSearch, make_space


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


@pytest.mark.parametrize("mode", ["stop", "promote"])
def test_what_tpe_takes_for_good_is_kept_up(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each proposal it is shown what a look at all trials would find, of those that pause and fail, too."""
    monkeypatch.setattr(samplers, "_TPE_BEST", 5)
    monkeypatch.setattr(samplers, "_TPE_LATEST", 8)
    compared = []

    def both(trials: list[FrozenTrial], *arguments: Any, best: Any, **options: Any) -> list[FrozenTrial]:
        shown, looked = (for_tpe(trials, *arguments, best=each, **options) for each in (best, None))
        assert [(trial.number, trial.state, trial.values) for trial in shown] == [
            (trial.number, trial.state, trial.values) for trial in looked
        ]
        compared.append(len(shown) < len(trials))
        return shown

    monkeypatch.setattr(samplers, "for_tpe", both)
    space = make_space(
        sampler={"name": "tpe", "startup_trials": 5},
        early_stopping={"name": "asha", "min_resource": 1, "reduction_factor": 2, "mode": mode},
        constraints=["optim.lr * model.map.layers <= 0.2"],
    )
    faults = [Fault(7.0 * moment, kind, moment) for moment in range(1, 5) for kind in ("fail", "recall", "worker")]
    search = VirtualSearch(space, 40, (4,), faults)
    assert search.start(stop_after=20.0)
    assert search.start()
    assert sum(compared) > 15


def test_a_proposal_looks_at_few_of_many_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: the work is counted, not timed."""
    monkeypatch.setattr(samplers, "_TPE_BEST", 5)
    monkeypatch.setattr(samplers, "_TPE_LATEST", 10)
    looks: list[int] = []
    search = VirtualSearch(make_space(sampler={"name": "tpe", "startup_trials": 5}), 120, (4,))
    role_of, ask = samplers.role_of, optuna.Study.ask

    def counted(trial: FrozenTrial) -> str:
        looks[-1] += 1
        return role_of(trial)

    def next_one(study: optuna.Study, *arguments: Any) -> optuna.Trial:
        looks.append(0)
        return ask(study, *arguments)

    monkeypatch.setattr(samplers, "role_of", counted)
    monkeypatch.setattr(optuna.Study, "ask", next_one)
    assert search.start()
    assert sum(looks[90:110]) <= 1.2 * sum(looks[30:50])
