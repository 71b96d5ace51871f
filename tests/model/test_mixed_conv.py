"""The tiled convolution: equal to the direct formula for every tile, kernel, batch and set of cells, gradients too."""

import pytest
import torch
from torch.nn import functional

from cdn_tune.model.cdn.dynamic_conv import DynamicConv2d, StaticConv2d
from cdn_tune.model.kernels import cell_conv, mixed_conv
from cdn_tune.model.kernels.mixed_conv import mixed_conv as convolve_tiles
from cdn_tune.model.kernels.tiles import tiling, transforms

TILES = [(1, 4), (1, 2), (2, 2), (4, 4), (2, 1)]


@pytest.fixture
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that every loop runs more than once."""
    monkeypatch.setattr(mixed_conv, "_ROWS", 4)
    monkeypatch.setattr(mixed_conv, "_BLOCK", 1)
    monkeypatch.setattr(mixed_conv, "_COLUMNS", 16)


def direct(x: torch.Tensor, weight: torch.Tensor, mixture: torch.Tensor | None, kernel: int) -> torch.Tensor:
    """The formula: maps [B, N, C] convolved, each with its own mixture of kernels [K², E, C, C]."""
    batch, size = len(x), int(x.shape[1] ** 0.5)
    maps = x.transpose(1, 2).unflatten(2, (size, size))
    taps = weight.permute(1, 2, 3, 0).unflatten(3, (kernel, kernel))  # [E, C, C, K, K]
    shares = torch.ones(batch, 1, dtype=x.dtype) if mixture is None else mixture
    out = [
        functional.conv2d(one[None], torch.einsum("e,eoikl->oikl", share, taps), padding=kernel // 2)
        for one, share in zip(maps, shares, strict=True)
    ]
    return torch.cat(out).flatten(2).transpose(1, 2)


def example(batch: int, channels: int, experts: int, kernel: int, size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(batch, size * size, channels, dtype=dtype, requires_grad=True),
        torch.randn(kernel * kernel, experts, channels, channels, dtype=dtype, requires_grad=True),
        torch.randn(batch, experts, dtype=dtype).softmax(dim=1).requires_grad_(),
    ]


@pytest.mark.usefixtures("many_blocks")
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("batch", "experts"), [(3, 4), (7, 2), (1, 1)])  # mixed first, mixed last, one of each
def test_equals_the_formula(tile: tuple[int, int], kernel: int, batch: int, experts: int) -> None:
    x, weight, mixture = example(batch, 8, experts, kernel, 7, torch.float64)
    tiles = tiling(torch.ones(7, 7, dtype=torch.bool), kernel, tile)
    upstream = torch.randn(batch, 49, 8, dtype=torch.float64)
    found = convolve_tiles(x, weight, mixture, tiles)
    expected = direct(x, weight, mixture, kernel)
    torch.testing.assert_close(found, expected)
    inputs = (x, weight, mixture)
    for mine, theirs in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.usefixtures("many_blocks")
@pytest.mark.parametrize("tile", TILES)
def test_one_kernel_for_all_samples(tile: tuple[int, int]) -> None:
    x, weight, _ = example(3, 8, 1, 3, 6, torch.float64)
    tiles = tiling(torch.ones(6, 6, dtype=torch.bool), 3, tile)
    found, expected = convolve_tiles(x, weight, None, tiles), direct(x, weight, None, 3)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    for mine, theirs in zip(
        torch.autograd.grad(found, (x, weight), upstream),
        torch.autograd.grad(expected, (x, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("experts", [2, 3])
def test_gradcheck(tile: tuple[int, int], experts: int) -> None:
    inputs = example(2, 2, experts, 3, 4, torch.float64)
    tiles = tiling(torch.ones(4, 4, dtype=torch.bool).triu(), 3, tile)
    assert torch.autograd.gradcheck(lambda *tensors: convolve_tiles(*tensors, tiles), inputs)


@pytest.mark.parametrize("tile", TILES)
def test_only_some_cells(tile: tuple[int, int]) -> None:
    x, weight, mixture = example(2, 4, 2, 5, 9, torch.float64)
    cells = torch.ones(9, 9, dtype=torch.bool).triu(3)
    tiles = tiling(cells, 5, tile)
    assert tiles.cells.shape[1] < tiling(torch.ones_like(cells), 5, tile).cells.shape[1]  # less is computed
    found, expected = convolve_tiles(x, weight, mixture, tiles), direct(x, weight, mixture, 5)
    torch.testing.assert_close(found[:, cells.flatten()], expected[:, cells.flatten()])


@pytest.mark.parametrize(("kernel", "tile"), [(3, (1, 4)), (5, (1, 4)), (5, (4, 4)), (7, (2, 2))])
def test_float32_is_accurate(kernel: int, tile: tuple[int, int]) -> None:
    x, weight, mixture = (tensor.detach() for tensor in example(2, 32, 4, kernel, 8, torch.float32))
    tiles = tiling(torch.ones(8, 8, dtype=torch.bool), kernel, tile)
    exact = direct(x.double(), weight.double(), mixture.double(), kernel)
    error = (convolve_tiles(x, weight, mixture, tiles) - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 1e-5


def test_too_many_points_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 12 points; at most 8 are accurate"):
        transforms(9, (4, 4))


@pytest.mark.parametrize("batch", [2, 9])
@pytest.mark.parametrize(("kernel", "size"), [(3, 8), (5, 16), (5, 32), (7, 8)])
def test_large_layers_take_the_tiles_and_small_ones_do_not(
    kernel: int, size: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same layer, with and without tiles: equal outputs and gradients."""
    torch.manual_seed(0)
    channels = 12
    x, query = torch.randn(batch, channels, size, size), torch.randn(batch, 6)
    for layer in (DynamicConv2d(channels, kernel, 6, 4), StaticConv2d(channels, kernel)):
        outputs, gradients = [], []
        for least in (1, 1 << 20):
            monkeypatch.setattr(cell_conv, "_MIN_SIZE", least)
            assert cell_conv._in_tiles(x, kernel) == (least == 1)
            layer.zero_grad()
            outputs.append(layer(x, query))
            outputs[-1].square().mean().backward()
            gradients.append([weight.grad.clone() for weight in layer.parameters()])
        torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


def test_mixed_kernels_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the backward pass keeps does not grow with the number of samples by a kernel each."""
    channels, kernel, batch = 16, 3, 8
    layer = DynamicConv2d(channels, kernel, 6, 4)
    x, query = torch.randn(batch, channels, 4, 4), torch.randn(batch, 6)
    monkeypatch.setattr(cell_conv, "_KEPT", 0)
    for least in (1, 1 << 20):  # in tiles, and as a grouped convolution
        monkeypatch.setattr(cell_conv, "_MIN_SIZE", least)
        kept: list[int] = []

        def note(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            layer(x, query)
        assert max(kept) <= layer.weight.numel() < batch * channels**2 * kernel**2
