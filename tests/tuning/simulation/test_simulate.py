"""Simulated searches: hand-made schedules, work conserved, seeds, budgets, and what they refuse."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cdn_tune.config import SearchSpace, override
from cdn_tune.errors import ConfigError
from cdn_tune.tuning.simulation.curves import Curves
from cdn_tune.tuning.simulation.landscape import Landscape
from cdn_tune.tuning.simulation.simulate import (
    Simulated,
    best_by,
    checked,
    landscape_of,
    simulate,
    simulate_many,
    summary,
)

from ..virtual_search import BASE, make_space
from .tables import EPOCHS, LONG, make_curves, make_header, make_record

ASHA = {"name": "asha", "min_resource": 1, "reduction_factor": 2}
NONE = {"name": "none"}


def points_space(points: Sequence[dict[str, Any]], **more: Any) -> SearchSpace:
    return make_space(start_with=list(points), early_stopping=NONE, **more)


def table_of(points: Sequence[dict[str, Any]], **more: Any) -> Landscape:
    records = [make_record(point, 0, **more) for point in points]
    return Landscape(Curves("made-up", False, make_header(), records, [EPOCHS] * len(records)), ["R1@0.5"])


# Start-up half a second, then eight epochs of 1 + layers / 4 seconds: 10.5, 12.5, 14.5 and 16.5 seconds.
POINTS = [{"optim.lr": 1e-3, "model.map.layers": layers} for layers in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("slots", "seconds", "ends"),
    [
        (1, 54.0, [10.5, 23.0, 37.5, 54.0]),
        (2, 29.0, [10.5, 12.5, 25.0, 29.0]),  # the third follows the first, the fourth the second
        (3, 27.0, [10.5, 12.5, 14.5, 27.0]),
        (9, 16.5, [10.5, 12.5, 14.5, 16.5]),
    ],
)
def test_a_schedule_made_by_hand(slots: int, seconds: float, ends: list[float]) -> None:
    found = simulate(points_space(POINTS), LONG, table_of(POINTS), 0, slots, trials=4)
    assert found.seconds == pytest.approx(seconds)
    times = [reached.seconds for reached in found.course]
    last = {number: time for (number, epoch, _, _), time in zip(found.decisions, times, strict=True) if epoch == EPOCHS}
    assert [last[number] for number in range(4)] == pytest.approx(ends)
    assert found.busy_seconds == pytest.approx(54.0)
    assert found.slot_seconds == pytest.approx(slots * seconds)


@pytest.mark.parametrize("slots", [1, 2, 8])
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_work_is_conserved(slots: int, sampler: str) -> None:
    """Slots busy times makespan is the sum of what the trials have taken."""
    landscape = Landscape(make_curves(), ["R1@0.5"])
    space = make_space(early_stopping=ASHA, sampler={"name": sampler, "startup_trials": 5})
    found = simulate(space, LONG, landscape, 1, slots, trials=25)
    result = summary(space, LONG, landscape, slots, [found], 1.0, [])
    assert found.trials == 25
    reported = Counter(number for number, *_ in found.decisions)
    work = sum(
        each.start_seconds + sum(point.seconds for point in each.points[: reported[number]])
        for number, each in found.predicted.items()
    )
    assert result["slots_busy"] * found.seconds * slots == pytest.approx(work)


def test_a_search_follows_from_its_seed() -> None:
    landscape, space = Landscape(make_curves(), ["R1@0.5"]), make_space(early_stopping=ASHA)
    one, same, other = (simulate(space, LONG, landscape, seed, 2, trials=12) for seed in (3, 3, 4))
    assert (one.decisions, one.course) == (same.decisions, same.course)
    assert one.decisions != other.decisions


def test_trials_are_stopped_as_the_rule_says() -> None:
    found = simulate(make_space(early_stopping=ASHA), LONG, Landscape(make_curves(), ["R1@0.5"]), 0, 1, trials=20)
    assert set(found.stopped) <= {1, 2, 4}
    assert sum(found.stopped.values()) >= 8
    by_trial: dict[int, list[int]] = {}
    for number, epoch, _, _ in found.decisions:
        by_trial.setdefault(number, []).append(epoch)
    assert all(epochs == list(range(1, len(epochs) + 1)) for epochs in by_trial.values())
    # at one slot, the first trial is alone at its rungs, and the second is stopped at the first if it is worse there
    assert len(by_trial[0]) == EPOCHS


def test_of_a_confirmed_trial_the_best_confirmation_is_chosen() -> None:
    landscape = Landscape(make_curves(), ["R1@0.5"])
    space = make_space(early_stopping=ASHA, confirm={"top": 2, "seeds": 2})
    found = simulate(space, LONG, landscape, 0, 2, trials=14)
    assert found.trials == 10  # without confirmations
    confirmations = {number: each for number, each in found.predicted.items() if number >= 10}
    assert len(confirmations) == 4
    reached = {number: value for number, _, value, _ in found.decisions if number in confirmations}
    assert found.val in reached.values()
    chosen = next(number for number, value in reached.items() if value == found.val)
    curve = [point.val["R1@0.5"] for point in confirmations[chosen].points]
    assert found.truth == pytest.approx(float(confirmations[chosen].truth[int(np.argmax(curve))]))


def test_chosen_is_the_best_val_and_its_truth_is_of_that_epoch() -> None:
    val = [0.1, 0.2, 0.9, 0.3, 0.3, 0.3, 0.3, 0.3]
    test = [0.0, 0.1, 0.4, 0.5, 0.5, 0.5, 0.6, 0.7]
    landscape = table_of(POINTS[:1], val={"R1@0.5": val}, test={"R1@0.5": test})
    found = simulate(points_space(POINTS[:1]), LONG, landscape, 0, 1, trials=1)
    assert (found.val, found.truth) == (0.9, 0.4)
    assert landscape.best_truth == 0.4
    result = summary(points_space(POINTS[:1]), LONG, landscape, 1, [found], 1.0, [])
    assert result["test_regret"] == 0.0
    assert result["val_minus_test"] == pytest.approx(0.5)


def test_the_winners_curse_shows() -> None:
    """Where all configurations are equal, the best val promises what test does not hold."""
    records = [make_record(record.parameters, record.seed) for record in make_curves(100, 1).records]
    draw = np.random.default_rng(0)
    flat = [
        record.model_copy(
            update={
                "val": {"R1@0.5": tuple(draw.normal(0.5, 0.05, EPOCHS))},
                "test": {"R1@0.5": tuple(draw.normal(0.5, 0.05, EPOCHS))},
            }
        )
        for record in records
    ]
    landscape = Landscape(Curves("made-up", False, make_header(), flat, [EPOCHS] * len(flat)), ["R1@0.5"])
    found, _ = simulate_many(make_space(early_stopping=NONE), LONG, landscape, 5, 2, trials=20)
    result = summary(make_space(), LONG, landscape, 2, found, 1.0, [])
    assert result["val_minus_test"] > 0.05


def test_best_so_far_never_falls_and_ends_at_the_best() -> None:
    landscape, space = Landscape(make_curves(), ["R1@0.5"]), make_space(early_stopping=ASHA)
    gpus = space.model_copy(update={"resources": space.resources.model_copy(update={"gpus_per_worker": 0.5})})
    found, speed = simulate_many(gpus, LONG, landscape, 6, 3, trials=15)
    assert speed > 0
    for what in ("epochs", "seconds", "gpu_hours"):
        rows = best_by(found, what)
        for name in ("q10", "q50", "q90"):
            assert (np.diff([row[name] for row in rows]) >= 0).all()
        assert rows[-1]["q50"] == pytest.approx(np.median([search.val for search in found]))
    hours = found[0].course[-1].gpu_hours
    assert hours == pytest.approx(0.5 * found[0].busy_seconds / 3600)


def test_budgets_end_a_search() -> None:
    landscape = Landscape(make_curves(), ["R1@0.5"])
    found = simulate(make_space(early_stopping=NONE), LONG, landscape, 0, 2, trials=50, epochs=40)
    assert 40 <= len(found.course) <= 42
    hours = simulate(make_space(early_stopping=NONE, budget={"hours": 40 / 3600}), LONG, landscape, 0, 2, trials=50)
    assert hours.ended_by is not None
    assert 40 <= hours.seconds <= 44
    target = simulate(make_space(early_stopping=NONE, budget={"target": 0.3}), LONG, landscape, 0, 1, trials=50)
    assert target.ended_by is not None
    assert max(reached.best for reached in target.course) >= 0.3


def test_a_kept_checkpoint_budget_holds_trials_back() -> None:
    space = make_space(early_stopping=NONE, disk_budget_gb=8e-3)
    landscape = Landscape(make_curves(), ["R1@0.5"])
    held = simulate(space, LONG, landscape, 0, 64, trials=64)
    free = simulate(make_space(early_stopping=NONE), LONG, landscape, 0, 64, trials=64)
    assert held.seconds > 1.5 * free.seconds


def run_checked(curves: Curves, **more: Any) -> tuple[Any, list[str]]:
    return checked(make_space(**more), BASE, curves)


def test_curves_that_lack_a_metric_are_refused() -> None:
    base = override(BASE.plain(), {"eval.metric": "R1@0.7"}, "base")
    with pytest.raises(ConfigError, match=r"lack R1@0\.7; choose among R1@0\.5, mIoU") as raised:
        checked(make_space(), base, make_curves(4))
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"lack R5@0\.5"):
        run_checked(make_curves(4), objectives=[{"metric": "R1@0.5"}, {"metric": "R5@0.5"}])


def test_curves_that_are_too_short_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"of 8 epochs, and early_stopping.min_resource=9"):
        run_checked(make_curves(4), early_stopping={**ASHA, "min_resource": 9})
    with pytest.raises(ConfigError, match=r"of 80 steps, and early_stopping.min_resource=81"):
        run_checked(make_curves(4), early_stopping={**ASHA, "min_resource": 81, "unit": "step"})
    assert run_checked(make_curves(4), early_stopping={**ASHA, "min_resource": 80, "unit": "step"})


def test_a_rule_that_compares_queries_is_refused() -> None:
    with pytest.raises(ConfigError, match="compares queries"):
        run_checked(make_curves(4), early_stopping={"name": "wilcoxon"})


def test_unknown_parameters_and_other_lengths_are_told() -> None:
    parameters = {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}}
    parameters |= {"model.hidden": {"type": "int", "low": 4, "high": 8}}
    base, notes = run_checked(make_curves(4), parameters=parameters)
    assert base.train.epochs == EPOCHS
    assert [note.partition(":")[0] for note in notes] == [
        "the curves do not know model.hidden",
        "not searched, as in the base experiment",
        "trials train 8 epochs, as the curves do, not train.epochs=4",
    ]
    space = make_space(parameters=parameters)
    landscape = landscape_of(space, base, make_curves(20))
    found = simulate(space, base, landscape, 0, 2, trials=4)
    assert isinstance(found, Simulated)
    assert max(each.distance for each in found.predicted.values()) < 0.7


def test_steps_count_as_recorded() -> None:
    space = make_space(early_stopping={**ASHA, "unit": "step", "min_resource": 20})
    found = simulate(space, LONG, Landscape(make_curves(), ["R1@0.5"]), 0, 1, trials=20)
    assert set(found.stopped) <= {2, 4}
    assert found.stopped
