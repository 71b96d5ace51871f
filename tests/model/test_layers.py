"""The layers, each against its formula written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from cdn_tune.model.cdn.dynamic_conv import DynamicConv2d
from cdn_tune.model.cdn.loss import attention_loss, moment_loss
from cdn_tune.model.cdn.map_stack import weight_maps
from cdn_tune.model.layers.moment_map import pool_proposals
from cdn_tune.model.layers.norm import MapNorm
from cdn_tune.moments.temporal_map import valid_mask


@pytest.mark.parametrize(("kernel", "experts", "batch"), [(1, 2, 3), (3, 4, 1), (5, 2, 9), (3, 8, 4)])
def test_dynamic_convolution_is_a_convolution_with_mixed_kernels(kernel: int, experts: int, batch: int) -> None:
    torch.manual_seed(0)
    layer = DynamicConv2d(channels=4, kernel_size=kernel, query_size=6, experts=experts).double()
    x, query = torch.randn(batch, 4, 8, 8).double(), torch.randn(batch, 6).double()
    mixture = layer.mixture(x, query)
    assert mixture.shape == (batch, experts)
    torch.testing.assert_close(mixture.sum(dim=1), torch.ones(batch).double())
    kernels = layer.kernels
    expected = torch.zeros_like(x)
    for sample, shares in enumerate(mixture):
        mixed = torch.einsum("e,eoikl->oikl", shares, kernels)
        expected[sample] = functional.conv2d(x[sample][None], mixed, shares @ layer.bias, padding=kernel // 2)[0]
    torch.testing.assert_close(layer(x, query), expected)


def test_dynamic_convolution_gradients() -> None:
    torch.manual_seed(0)
    layer = DynamicConv2d(channels=2, kernel_size=3, query_size=2, experts=2).double()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    query = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x: torch.Tensor, query: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, query))

    assert torch.autograd.gradcheck(run, (x, query, *layer.parameters()))


def test_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        DynamicConv2d(channels=2, kernel_size=4, query_size=2, experts=2)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_norm_over_all_cells_is_batch_norm(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    ours, theirs = MapNorm(3), nn.BatchNorm2d(3)
    mask = valid_mask(4, [4])
    for _ in range(3):
        x = torch.randn(5, 3, 4, 4) * 3 + 1
        torch.testing.assert_close(ours(x.contiguous(memory_format=memory_format), mask), theirs(x))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x, mask), theirs(x))


def test_norm_over_valid_cells_ignores_the_others() -> None:
    torch.manual_seed(0)
    mask = valid_mask(4, [4])
    x = torch.randn(5, 3, 4, 4)
    first = MapNorm(3, "valid")(x, mask)
    valid = first[:, :, mask]
    torch.testing.assert_close(valid.mean(dim=(0, 2)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(valid.var(dim=(0, 2), unbiased=False), torch.ones(3), atol=1e-3, rtol=0)
    second = MapNorm(3, "valid")(x + 100.0 * ~mask, mask)
    torch.testing.assert_close(first[:, :, mask], second[:, :, mask])


def test_norm_over_all_cells_is_to_the_bit_that_over_a_mask_of_all() -> None:
    """What statistics over all cells leave out are products with 1."""
    torch.manual_seed(0)
    values = (torch.randn(5, 6, 4, 4) * 3 + 1).contiguous(memory_format=torch.channels_last)
    weight, grad = torch.randn(6), torch.randn(5, 6, 4, 4)
    found = []
    for over in ("all", "valid"):
        norm, x = MapNorm(6, over), values.clone().requires_grad_()
        norm.weight.data.copy_(weight)
        y = norm(x, torch.ones(4, 4, dtype=torch.bool))
        gradients = torch.autograd.grad(y, (x, norm.weight, norm.bias), grad)
        found.append([y, *gradients, norm.running_mean, norm.running_var])
    assert all(torch.equal(*each) for each in zip(*found, strict=True))


@pytest.mark.parametrize("over", ["valid", "all"])
def test_norm_gradients(over: str) -> None:
    torch.manual_seed(0)
    mask = valid_mask(3, [3])
    layer = MapNorm(2, over).double()  # type: ignore[arg-type]
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x, mask), (x, layer.weight, layer.bias))


@pytest.mark.parametrize(("clips", "scales"), [(8, [8]), (8, [4, 2]), (16, [4, 2, 2])])
def test_pooled_proposals_are_maxima_over_their_clips(clips: int, scales: list[int]) -> None:
    torch.manual_seed(0)
    proposals = pool_proposals(clips, scales)
    x = torch.randn(2, 3, clips)
    moments = proposals(x)
    assert torch.equal(proposals.mask, valid_mask(clips, scales))
    for start in range(clips):
        for end in range(clips):
            expected = x[:, :, start : end + 1].amax(2) if proposals.mask[start, end] else torch.zeros(2, 3)
            assert torch.equal(moments[:, :, start, end], expected)


def test_weight_maps_count_the_cells_under_the_kernel() -> None:
    mask = valid_mask(5, [5])
    first, second = weight_maps(mask, (3, 3))
    for s in range(5):
        for e in range(5):
            count = int(mask[max(s - 1, 0) : s + 2, max(e - 1, 0) : e + 2].sum())
            assert first[s, e] == pytest.approx(1 / count if count else 0)
    assert int((second > 0).sum()) > int((first > 0).sum()) > int(mask.sum())  # valid cells grow with every layer


def test_losses() -> None:
    mask = valid_mask(3, [3])
    iou = torch.tensor([[[0.2, 0.9, 0.5]] * 3])
    extreme = torch.full((1, 3, 3), 1e4, requires_grad=True)
    loss = moment_loss(extreme, iou, mask, 0.3, 0.7)
    loss.backward()
    assert loss.isfinite()
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()
    assert not extreme.grad[:, ~mask].any()  # invalid cells teach nothing
    per_sample = moment_loss(torch.randn(4, 3, 3), torch.rand(4, 3, 3), mask, 0.3, 0.7, reduction="none")
    assert per_sample.shape == (4,)
    orthogonal = torch.eye(2).expand(1, 3, 2, 2)
    assert attention_loss(orthogonal, 1.0).item() == 0  # A Aᵀ is the identity
    assert attention_loss(torch.full((1, 3, 2, 2), 0.5), 1.0).item() == pytest.approx(2 * 0.25 + 2 * 0.25)
