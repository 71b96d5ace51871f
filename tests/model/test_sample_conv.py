"""The convolution with a kernel per sample as a GPU computes it: equal to the formula, gradients too."""

import functools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from cdn_tune.model.kernels import sample_conv
from cdn_tune.model.kernels.sample_conv import compiled
from cdn_tune.model.kernels.sample_conv import sample_conv as convolve

ON_ALL = ["published", "rows", "cudnn"]  # machines; Triton's kernels: test_triton_kernels.py


def formula(x: torch.Tensor, weight: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
    kernel = int(len(weight) ** 0.5)
    taps = torch.einsum("be,keoi->boik", mixture, weight).unflatten(3, (kernel, kernel))
    return torch.cat(
        [functional.conv2d(one[None], mixed, padding=kernel // 2) for one, mixed in zip(x, taps, strict=True)]
    )


def example(batch: int, channels: int, experts: int, kernel: int, size: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(batch, channels, size, size, dtype=torch.float64, requires_grad=True),
        torch.randn(kernel**2, experts, channels, channels, dtype=torch.float64, requires_grad=True),
        torch.randn(batch, experts, dtype=torch.float64).softmax(dim=1).requires_grad_(),
    ]


@pytest.mark.parametrize("product", ON_ALL)
@pytest.mark.parametrize("most", [1, 10_000, 1 << 28])  # one sample at once, a few, all
@pytest.mark.parametrize(
    ("batch", "channels", "experts", "kernel", "size"),
    [(3, 6, 2, 5, 7), (2, 4, 3, 3, 5), (4, 3, 2, 1, 4), (1, 5, 4, 7, 3), (5, 2, 3, 9, 4)],
)
def test_equals_the_formula(
    monkeypatch: pytest.MonkeyPatch,
    product: str,
    most: int,
    batch: int,
    channels: int,
    experts: int,
    kernel: int,
    size: int,
) -> None:
    monkeypatch.setattr(sample_conv, "_AT_ONCE", most)
    inputs = example(batch, channels, experts, kernel, size)
    found, expected = convolve(*inputs, product), formula(*inputs)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    with torch.no_grad():
        torch.testing.assert_close(convolve(*inputs, product), expected)


@pytest.mark.parametrize("product", ON_ALL)
def test_takes_the_format_of_autocast(product: str) -> None:
    exact = example(3, 6, 2, 3, 5)
    inputs = [tensor.detach().float().requires_grad_() for tensor in exact]
    with torch.autocast("cpu", torch.bfloat16):
        found = convolve(*inputs, product)
    assert found.dtype == torch.bfloat16
    expected = formula(*exact)
    torch.testing.assert_close(found.double(), expected, atol=0.1, rtol=0.02)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, exact, upstream)
    for mine, theirs in zip(torch.autograd.grad(found, inputs, upstream.bfloat16()), wanted, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), theirs, atol=0.03 * float(theirs.abs().max()), rtol=0)


def kept_beside(inputs: list[torch.Tensor], product: str) -> int:
    """Bytes that are kept for the backward pass, beside the arguments."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        convolve(*inputs, product)
    return sum(size for address, size in kept.items() if address not in {tensor.data_ptr() for tensor in inputs})


def test_kernels_are_kept_where_they_are_few_and_read_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = example(8, 4, 2, 3, 5)
    kernels = 8 * 9 * 4 * 4 * 8
    assert [kept_beside(inputs, product) for product in ON_ALL] == [kernels, 0, kernels]
    monkeypatch.setattr(sample_conv, "_KEPT", kernels - 1)
    assert [kept_beside(inputs, product) for product in ON_ALL] == [kernels, 0, 0]


class Layer(nn.Module):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return convolve(*inputs).relu()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler asks for it where it goes on
def test_a_compiled_module_convolves_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # needs no C compiler
    monkeypatch.setattr(sample_conv, "_convolve", sample_conv._convolve)
    inputs = example(3, 4, 2, 3, 5)
    found, expected = compiled(Layer())(*inputs), formula(*inputs).relu()
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_the_compiler_is_not_loaded_unasked() -> None:
    """It takes seconds, and a search starts many processes."""
    code = "import sys, cdn_tune.training.loop; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


@pytest.mark.parametrize("grad", [True, False])
def test_an_evaluation_holds_the_kernels_of_few_samples(monkeypatch: pytest.MonkeyPatch, grad: bool) -> None:
    """Though its weights are leaves that want gradients; a training multiplies as published, all at once."""
    held: list[int] = []
    original = sample_conv.mix

    def mix(weight: torch.Tensor, mixture: torch.Tensor, *rest: Any) -> torch.Tensor:
        held.append(len(mixture))
        return original(weight, mixture, *rest)

    monkeypatch.setattr(sample_conv, "mix", mix)
    monkeypatch.setattr(sample_conv, "_AT_ONCE", 1)
    weight = torch.randn(9, 2, 4, 4, requires_grad=True)
    with torch.set_grad_enabled(grad):
        convolve(torch.randn(3, 4, 5, 5), weight, torch.rand(3, 2), "published")
    assert held == ([3] if grad else [1, 1, 1])
