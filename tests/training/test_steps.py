"""The steps of an epoch, their results read at once and one step late, as on a GPU."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cdn_tune.errors import NotFinite
from cdn_tune.training.reports import StepReport, ignore
from cdn_tune.training.runs.checkpoint import build_model
from cdn_tune.training.step.optimiser import build_optimiser, build_schedule
from cdn_tune.training.step.process_group import this_world
from cdn_tune.training.step.steps import Engine, EpochState
from cdn_tune.training.train_trial import open_data

Tiny = Callable[..., Any]
BAD = 3  # the step whose gradient is made not finite


def engine_of(experiment: Any, lags: bool) -> Engine:
    torch.manual_seed(0)
    model = build_model(experiment)
    optimiser = build_optimiser(model, experiment.optim)
    schedule = build_schedule(optimiser, experiment.optim, total_steps=100)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Engine(experiment, model, optimiser, schedule, this_world(), torch.float32, scaler, lags=lags)


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in engine.model.named_parameters()}


def spoil(engine: Engine, step: int) -> None:
    """Makes the gradient of one step not finite."""
    parameter = next(iter(engine.model.parameters()))
    parameter.register_hook(lambda gradient: gradient * (math.nan if engine.schedule.steps == step - 1 else 1.0))


def test_reading_results_late_changes_none(tiny: Tiny) -> None:
    experiment = tiny()
    data = open_data(experiment.data)["train"]
    found = []
    for lags in (False, True):
        engine, steps = engine_of(experiment, lags), list[StepReport]()
        totals = [engine.run_epoch(data, epoch, steps.append) for epoch in (1, 2)]
        plain = [(each.loss, each.losses, each.gradient_norm, each.queries) for each in totals]
        found.append((plain, [(each.epoch, each.step, each.loss) for each in steps], weights(engine)))
    (at_once, steps, moved), (late, late_steps, late_moved) = found
    assert (at_once, steps) == (late, late_steps)
    assert len(steps) > 2 * BAD
    assert all(torch.equal(value, late_moved[name]) for name, value in moved.items())


@pytest.mark.parametrize("lags", [False, True])
def test_what_is_saved_within_an_epoch_counts_every_step(tiny: Tiny, lags: bool) -> None:
    experiment = tiny()
    engine, kept = engine_of(experiment, lags), list[EpochState]()

    def save(_: int, state: EpochState) -> None:
        if state.step == BAD:
            engine.settle()
            kept.append(copy.deepcopy(state))

    engine.between_steps = save
    data = open_data(experiment.data)["train"]
    whole = engine.run_epoch(data, 1, ignore)
    (state,) = kept
    assert state.sums is not None
    assert float(state.sums[-1]) == BAD * experiment.train.batch_size
    rest = engine_of(experiment, lags)
    rest.between_steps = lambda _, after: None if after.step > BAD else pytest.fail("steps are made twice")
    assert rest.run_epoch(data, 1, ignore, state).queries == whole.queries


@pytest.mark.parametrize("lags", [False, True])
def test_a_gradient_that_is_not_finite_changes_no_weight(tiny: Tiny, lags: bool) -> None:
    experiment = tiny()
    data, engine = open_data(experiment.data)["train"], engine_of(experiment, lags)
    spoil(engine, BAD)
    before: list[dict[str, torch.Tensor]] = []
    original = engine.step

    def step(*arguments: Any) -> torch.Tensor:
        before.append(weights(engine))
        return original(*arguments)

    engine.step = step  # type: ignore[method-assign]
    with pytest.raises(NotFinite, match=rf"gradient norm nan at epoch 1, step {BAD}, "):
        engine.run_epoch(data, 1, ignore)
    before.append(weights(engine))
    assert len(before) == BAD + 1 + lags
    assert all(torch.equal(value, before[BAD][name]) for name, value in before[BAD - 1].items())
    assert any(not torch.equal(value, before[1][name]) for name, value in before[0].items())
    assert all(bool(value.isfinite().all()) for value in before[-1].values())
