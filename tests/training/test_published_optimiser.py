"""The published optimisation of SnAG, and ours where it is a mistake."""

import pytest
import torch
from torch import nn

from cdn_tune.training.step.optimiser import average
from cdn_tune.training.step.published import Rates, part_groups


def test_the_first_step_moves_unless_as_published() -> None:
    ours, published = (Rates(warmup=1, epochs=2, per_epoch=4, from_zero=zero) for zero in (False, True))
    assert [ours.at(step, 1.0) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert [published.at(step, 1.0) for step in range(6)] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])


def test_schedules() -> None:
    drops = Rates(warmup=0, epochs=3, per_epoch=2, drops=(1, 2), gamma=0.5)
    assert [drops.at(step, 8.0) for step in range(6)] == [8, 8, 4, 4, 2, 2]
    cosine = Rates(warmup=0, epochs=2, per_epoch=2, schedule="cosine")
    assert [cosine.at(step, 1.0) for step in range(5)] == pytest.approx([1, 0.85355, 0.5, 0.14645, 0], abs=1e-5)


def test_groups_and_average() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    groups = part_groups([(model[0], 0.1), (model[1], 0.2)], weight_decay=0.05)
    assert [(len(group["params"]), group["lr"], group["weight_decay"]) for group in groups] == [
        (1, 0.1, 0.05),
        (1, 0.1, 0.0),
        (0, 0.2, 0.05),
        (2, 0.2, 0.0),
    ]
    averaged = nn.Linear(2, 3)
    before = averaged.weight.detach().clone()
    average(averaged, model[0], 0.9)
    torch.testing.assert_close(averaged.weight.detach(), 0.9 * before + 0.1 * model[0].weight.detach())
