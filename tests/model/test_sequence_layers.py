"""Layers of padded sequences, each against its formula written out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cdn_tune.model.layers.attention import Attention, global_attention, local_attention
from cdn_tune.model.layers.encoder_block import EncoderBlock, masked_max_pool
from cdn_tune.model.layers.masked_conv import MaskedConv
from cdn_tune.model.layers.positions import Positions, sinusoids
from cdn_tune.model.layers.residual import ResidualScale


def lengths_mask(lengths: list[int], steps: int) -> Tensor:
    return torch.arange(steps) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize(("steps", "window"), [(3, 5), (32, 3), (70, 5), (65, 19), (100, 81)])
def test_local_attention_is_attention_under_a_band(steps: int, window: int) -> None:
    """Output and gradients, whatever blocks it is computed in."""
    torch.manual_seed(0)
    mask = lengths_mask([steps, steps - 2], steps)
    inputs = [torch.randn(2, steps, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    query, key, value = (each.unflatten(2, (2, 4)).transpose(1, 2) for each in inputs)  # [B, H, T, d]
    step = torch.arange(steps)
    near = ((step[:, None] - step).abs() <= window // 2) & mask[:, None, None]
    scores = (query @ key.transpose(2, 3) / 2).masked_fill(~near, -1e9).softmax(dim=3)
    expected = (scores @ value).transpose(1, 2).flatten(2) * mask[..., None]
    found = local_attention(*inputs, mask, heads=2, window=window)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    for ours, theirs in zip(torch.autograd.grad((found * weights).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_padded_keys_are_not_attended_to() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, steps, 8) for steps in (5, 7, 7))
    some = global_attention(query, key[:, :4], value[:, :4], torch.ones(1, 4, dtype=torch.bool), heads=4)
    torch.testing.assert_close(global_attention(query, key, value, lengths_mask([4], 7), heads=4), some)
    nothing = global_attention(query, key, value, lengths_mask([0], 7), heads=4)
    torch.testing.assert_close(nothing, value[:, :1].expand(1, 5, 8))


def test_weights_are_what_the_attended_is_made_of() -> None:
    """Of one head, the attended is the output layer of the weighted values."""
    torch.manual_seed(0)
    layer = Attention(8, 1, key_channels=6)
    query, key, mask = torch.randn(2, 5, 8), torch.randn(2, 4, 6), lengths_mask([4, 2], 4)
    weights = layer.weights(query, key, mask)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(2, 5))
    assert weights[1, :, 2:].abs().max() == 0
    torch.testing.assert_close(layer.out(weights @ layer.value(key)), layer(query, key, key, mask))


def test_weights_are_the_mean_of_heads() -> None:
    torch.manual_seed(0)
    layer = Attention(8, 2)
    query, key, mask = torch.randn(2, 5, 8), torch.randn(2, 4, 8), lengths_mask([4, 3], 4)
    parts = [each.unflatten(2, (2, 4)).transpose(1, 2) for each in (layer.query(query), layer.key(key))]
    scores = (parts[0] @ parts[1].transpose(2, 3) / 2).masked_fill(~mask[:, None, None], -torch.inf)
    torch.testing.assert_close(layer.weights(query, key, mask), scores.softmax(dim=3).mean(dim=1))


@pytest.mark.parametrize(
    ("arguments", "words"), [({"heads": 3}, "3 heads do not divide 8"), ({"heads": 2, "window": 4}, "use 3 or 5")]
)
def test_impossible_attention(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Attention(8, **arguments)


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 1, 6), (5, 2, 1), (3, 2, 6)])
def test_masked_convolution(kernel: int, stride: int, groups: int) -> None:
    torch.manual_seed(0)
    layer = MaskedConv(6, 6, kernel, stride, groups, bias=True)
    torch.nn.init.normal_(layer.bias)
    x, mask = torch.randn(2, 8, 6), lengths_mask([8, 5], 8)
    cut = torch.where(mask[..., None], x, 0.0).transpose(1, 2)
    expected = functional.conv1d(cut, layer.weight, layer.bias, stride, kernel // 2, 1, groups).transpose(1, 2)
    found, kept = layer(x, mask)
    torch.testing.assert_close(found, expected)
    assert torch.equal(kept, mask[:, ::stride])


def test_steps_that_a_stride_does_not_divide() -> None:
    with pytest.raises(ValueError, match="7 steps cannot be taken every 2; pad them to 8"):
        MaskedConv(4, 4, 3, 2)(torch.zeros(1, 7, 4), torch.ones(1, 7, dtype=torch.bool))


@pytest.mark.parametrize(("stride", "window"), [(0, 0), (1, 5), (2, 3), (2, 0)])
def test_padding_changes_nothing(stride: int, window: int) -> None:
    """Neither what lies in it, nor how long it is, nor who else is in the batch; not the gradients, either."""
    torch.manual_seed(0)
    block = EncoderBlock(8, 2, stride, window)  # type: ignore[arg-type]
    for name, parameter in block.named_parameters():
        if name.endswith("scale"):
            torch.nn.init.constant_(parameter, 0.7)
    short, long = torch.randn(1, 6, 8), torch.randn(1, 12, 8)
    expected, _ = block(short, lengths_mask([6], 6))
    padded = torch.cat([functional.pad(short, (0, 0, 0, 6), value=9.0), long])
    found, kept = block(padded, lengths_mask([6, 12], 12))
    torch.testing.assert_close(found[0][kept[0]], expected[0])
    block.zero_grad()
    expected.sum().backward()
    wanted = [parameter.grad for parameter in block.parameters()]
    block.zero_grad()
    found[0][kept[0]].sum().backward()
    for parameter, gradient in zip(block.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)


def test_masked_max_pool() -> None:
    x = torch.tensor([[-3.0, -1.0, -2.0, -5.0, 0.0, 0.0]])[..., None]
    found = masked_max_pool(x, lengths_mask([4], 6))
    assert found[0, :2, 0].tolist() == [-1, -1]  # steps 0 and 1; steps 1 to 3
    assert found[0, 2, 0].item() == -5  # step 3, and padding, which has the least


def test_sinusoids() -> None:
    table = sinusoids(5, 4)
    expected = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.8415, 0.0100, 0.5403, 1.0000]]) / 2
    torch.testing.assert_close(table[:2], expected, atol=1e-4, rtol=0)


def test_longer_sequences_stretch_the_table() -> None:
    """To each one's own length, rounded up if wanted, whatever the padding; but not in training."""
    zeros, mask = torch.zeros(3, 9, 4), lengths_mask([9, 7, 3], 9)
    whole, own = (Positions(5, 4, multiple).eval() for multiple in (4, 1))

    def stretched(steps: int) -> Tensor:
        return functional.interpolate(whole.table.T[None], size=steps, mode="linear", align_corners=True)[0].T

    found = whole(zeros, mask)
    torch.testing.assert_close(found[0], stretched(12)[:9])
    torch.testing.assert_close(found[1, :7], stretched(8)[:7])
    torch.testing.assert_close(found[2, :3], whole.table[:3])
    found = own(zeros, mask)
    torch.testing.assert_close(found[0], stretched(9))
    torch.testing.assert_close(found[1, :7], stretched(7))
    torch.testing.assert_close(found[2, :3], whole.table[:3])
    with pytest.raises(ValueError, match="9 steps is longer than the table of 5 positions"):
        whole.train()(zeros, mask)


def test_stochastic_depth() -> None:
    """A branch is there, divided by 1 - p, or not, per sample and group; always in evaluation."""
    torch.manual_seed(0)
    layer = ResidualScale(2, drop=0.25, start=1.0)
    kept = layer(torch.ones(4000, 5, 2), groups=(2, 3))
    assert {round(value, 4) for value in kept.unique().tolist()} == {0.0, 1.3333}
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert torch.equal(kept[:, 2], kept[:, 4])
    assert not torch.equal(kept[:, 1], kept[:, 2])
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(layer.eval()(torch.ones(2, 5, 2)), torch.ones(2, 5, 2))
