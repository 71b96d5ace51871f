"""A NaN or an infinity is told by the name of what holds it."""

import math

import torch
from torch import nn

from cdn_tune.model.nonfinite import explain_nonfinite

NAMES = ["AO8RW:3", "0A8CF:1", "Y6R7T:9"]


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(3, 4, 2), torch.zeros(3, 5, 2)


def test_all_is_finite() -> None:
    assert explain_nonfinite(nn.Linear(2, 2), *inputs(), NAMES) is None


def test_videos_and_queries_are_named() -> None:
    visual, words = inputs()
    visual[1, 3, 0] = math.nan
    told = explain_nonfinite(nn.Linear(2, 2), visual, words, NAMES)
    assert told == "frame features of 0A8CF:1 are not finite (NaN or infinite)"
    visual, words = inputs()
    words[0, 0, 0], words[2, 1, 1] = math.inf, -math.inf
    told = explain_nonfinite(nn.Linear(2, 2), visual, words, NAMES)
    assert told == "word vectors of AO8RW:3, Y6R7T:9 are not finite (NaN or infinite)"


def test_weights_statistics_and_gradients_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model(torch.randn(3, 2)).sum().backward()
    assert model[0].bias.grad is not None
    model[0].bias.grad[0] = math.nan
    assert explain_nonfinite(model, *inputs(), NAMES) == "gradients of 0.bias are not finite (NaN or infinite)"
    model.eval()
    model[1].running_var[0] = math.inf
    assert explain_nonfinite(model, *inputs(), NAMES) == "weights of 1.running_var are not finite (NaN or infinite)"


def test_many_are_counted() -> None:
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(math.nan)
    told = explain_nonfinite(model, *inputs(), NAMES)
    assert told == "weights of 0.weight, 0.bias, 1.weight, 1.bias, 2.weight and 3 more are not finite (NaN or infinite)"
