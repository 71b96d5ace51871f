"""Numbers that small examples do not show: saturated scores, statistics of large sparse maps, inference mode."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from cdn_tune.model.cdn.dynamic_conv import DynamicConv2d
from cdn_tune.model.cdn.loss import moment_loss, scale_iou
from cdn_tune.model.kernels import cell_conv
from cdn_tune.model.layers.norm import MapNorm
from cdn_tune.moments.temporal_map import valid_mask


def test_saturated_scores_are_as_published() -> None:
    """The published formula: cross-entropy of the sigmoid, in float32, with logits far beyond where it rounds to 1."""
    torch.manual_seed(0)
    mask = valid_mask(8, [8])
    logits = (torch.randn(3, 8, 8) * 40).requires_grad_()
    ious = torch.rand(3, 8, 8)
    cells = mask.expand(3, -1, -1)
    expected = functional.binary_cross_entropy(torch.sigmoid(logits)[cells], scale_iou(ious, 0.5, 0.9)[cells])
    (wanted,) = torch.autograd.grad(expected, logits)
    loss = moment_loss(logits, ious, mask, 0.5, 0.9)
    (found,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, wanted)
    assert float(logits.detach().abs().max()) > 40


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_statistics_of_a_large_sparse_map(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    mask = valid_mask(128, [16, 8, 8, 8])
    x = torch.randn(4, 16, 128, 128) * mask
    exact = nn.BatchNorm2d(16).double()(x.double())
    norm = MapNorm(16)
    found = norm(x.contiguous(memory_format=memory_format), mask)
    assert (found - exact).abs().max() < 5e-6
    torch.testing.assert_close(norm.running_var.double(), 0.9 + 0.1 * x.double().var(dim=(0, 2, 3)), rtol=1e-6, atol=0)


def test_inference_mode_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_conv, "_MIN_SIZE", 1)
    layer = DynamicConv2d(6, 3, 4, 2)
    x, query = torch.randn(3, 6, 11, 11), torch.randn(3, 4)
    with torch.inference_mode():
        layer(x, query)
    layer(x, query).sum().backward()
    assert layer.weight.grad is not None
