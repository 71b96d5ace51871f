"""Optimiser and schedules."""

import itertools

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from cdn_tune.config import OptimConfig
from cdn_tune.errors import ConfigError
from cdn_tune.model.cdn.dynamic_conv import DynamicConv2d
from cdn_tune.training.step.optimiser import PLATEAU_FACTOR, PLATEAU_PATIENCE, Ema, build_optimiser, build_schedule


def rates(config: OptimConfig, steps: int) -> list[float]:
    optimiser = build_optimiser(nn.Linear(2, 2), config)
    schedule = build_schedule(optimiser, config, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimiser.param_groups[0]["lr"])
        schedule.step()
    return seen


def test_weight_decay_spares_biases_and_norms() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    decayed, spared = build_optimiser(model, OptimConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert [p.ndim for p in decayed["params"]] == [4]
    assert len(spared["params"]) == 3
    dynamic = DynamicConv2d(channels=2, kernel_size=3, query_size=2, experts=2)
    _, spared = build_optimiser(dynamic, OptimConfig(weight_decay=0.1)).param_groups
    assert any(parameter is dynamic.bias for parameter in spared["params"])  # a bias per expert: 2-D, and still a bias


def test_warm_up_then_constant() -> None:
    assert rates(OptimConfig(lr=1.0, warmup_steps=4), 6) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_cosine_falls_to_zero() -> None:
    seen = rates(OptimConfig(lr=1.0, schedule="cosine"), 100)
    assert seen[0] == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(seen))
    assert seen[-1] < 1e-3


def test_plateau_lowers_only_when_the_loss_stops_falling() -> None:
    config = OptimConfig(lr=1.0, schedule="plateau")
    schedule = build_schedule(build_optimiser(nn.Linear(2, 2), config), config, 100)
    for loss in (5.0, 4.0, 3.0, 2.0, 1.0):
        schedule.end_epoch(loss)
    assert schedule.learning_rate == 1.0
    for _ in range(PLATEAU_PATIENCE + 1):
        schedule.end_epoch(1.0)
    assert schedule.learning_rate == PLATEAU_FACTOR


def test_milestones_lower_the_rate_after_their_epochs_also_when_resumed() -> None:
    config = OptimConfig(lr=1.0, schedule="milestones", milestones=(1, 3))
    schedule = build_schedule(build_optimiser(nn.Linear(2, 2), config), config, 100)
    seen = [schedule.learning_rate]
    for _ in range(4):
        schedule.end_epoch(1.0)
        again = build_schedule(build_optimiser(nn.Linear(2, 2), config), config, 100)
        again.load_state_dict(schedule.state_dict())
        seen.append(again.learning_rate)
    assert seen == pytest.approx([1.0, 0.1, 0.1, 0.01, 0.01])


def test_reversed_plateau_is_torch_fed_with_minus_the_val_loss() -> None:
    config = OptimConfig(lr=1.0, schedule="plateau_reversed")
    schedule = build_schedule(build_optimiser(nn.Linear(2, 2), config), config, 1000)
    theirs = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, factor=0.8, patience=20)
    losses = [1 / (1 + epoch) + 0.3 * (epoch % 37 == 36) for epoch in range(100)]  # falls, with a rise now and then
    for loss in losses:
        schedule.end_epoch(0.0)  # of no consequence
        schedule.end_evaluation(loss)
        plateau.step(-loss)
        assert schedule.learning_rate == pytest.approx(theirs.param_groups[0]["lr"])
    assert schedule.learning_rate < 0.6


def test_betas_and_decay_of_everything() -> None:
    config = OptimConfig(name="adamw", betas=(0.9, 0.99), weight_decay=0.1, decay_all=True)
    decayed, spared = build_optimiser(nn.Linear(2, 2), config).param_groups
    assert decayed["betas"] == (0.9, 0.99)
    assert (len(decayed["params"]), len(spared["params"])) == (2, 0)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_names(name: str) -> None:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    built = build_optimiser(nn.Linear(2, 2), OptimConfig.model_validate({"name": name}))
    assert type(built).__bases__ == (kind,)  # without the compiler


def test_warm_up_in_epochs_and_from_zero() -> None:
    config = OptimConfig(lr=1.0, warmup_epochs=2, warmup_from_zero=True)
    schedule = build_schedule(build_optimiser(nn.Linear(2, 2), config), config, 100, epoch_steps=2)
    seen = []
    for _ in range(6):
        seen.append(schedule.learning_rate)
        schedule.step()
    assert seen == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])
    with pytest.raises(ValidationError, match="warmup_steps=3, warmup_epochs=2: set one to 0"):
        OptimConfig(warmup_steps=3, warmup_epochs=2)


def test_the_query_encoder_has_its_own_rate() -> None:
    """In groups of its own, and under the same schedule, also when resumed."""
    model = nn.ModuleDict({"query": nn.Linear(2, 2), "query_free": nn.Linear(2, 2)})
    config = OptimConfig(lr=1.0, text_lr=0.1, weight_decay=0.5, warmup_steps=2)
    optimiser = build_optimiser(model, config, "query")
    groups = optimiser.param_groups
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert [[names[id(weight)] for weight in group["params"]] for group in groups] == [
        ["query_free.weight"],
        ["query_free.bias"],
        ["query.weight"],
        ["query.bias"],
    ]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.5, 0.0]
    schedule = build_schedule(optimiser, config, 10)
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 0.5, 0.05, 0.05]
    schedule.step()
    again = build_optimiser(model, config, "query")
    resumed = build_schedule(again, config, 10)
    again.load_state_dict(optimiser.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert [group["lr"] for group in again.param_groups] == [1.0, 1.0, 0.1, 0.1]
    with pytest.raises(ConfigError, match=r"optim\.text_lr=0\.1: this model has no part that encodes queries"):
        build_optimiser(nn.Linear(2, 2), config, "query")


def test_the_average_begins_with_the_untrained_weights_if_as_published() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    averages = [Ema(model, 0.9, warmup) for warmup in (True, False)]
    nn.init.constant_(model.weight, 1.0)
    for average, share in zip(averages, (0.1, 0.9), strict=True):
        average.update(model)
        torch.testing.assert_close(average.model.weight.detach(), share * before + 1 - share)
