"""Runs the Triton kernels in Triton's interpreter; prints each case's errors relative to float64, as JSON.

``TRITON_INTERPRET=1 python -m tests.model.triton_cases``: kernels are interpreted or compiled as it says when they are
first imported. The interpreter multiplies bfloat16 wrongly, so that float32 and float16 stand for it here.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from triton.runtime import interpreter

from cdn_tune.model.kernels import mixing, triton_launch
from cdn_tune.model.kernels.epilogue import Epilogue
from cdn_tune.model.kernels.mixing import relative_error
from cdn_tune.model.kernels.needed import Needed, needed
from cdn_tune.model.kernels.products import PRODUCTS
from cdn_tune.model.kernels.sample_conv import sample_conv
from cdn_tune.model.kernels.triton_launch import Tile

# Batch, clips, channels, kernel, experts; tiles of the products and of the kernels' gradient; format. Nothing divides.
CASES = {
    "K3": (2, 5, 16, 3, 3, Tile(16, 16, 16, 4, 2), Tile(16, 16, 16, 4, 2), torch.float32),
    "K5, in two shares": (1, 6, 20, 5, 5, Tile(32, 32, 32, 4, 2, 2), Tile(32, 32, 32, 4, 2, 2), torch.float32),
    "K7, in three shares": (1, 4, 24, 7, 8, Tile(16, 32, 16, 4, 2, 3), Tile(32, 32, 16, 4, 2), torch.float32),
    "K9": (1, 3, 17, 9, 4, Tile(16, 32, 32, 4, 2), Tile(32, 32, 16, 4, 2), torch.float32),
    "K3, float16": (2, 4, 33, 3, 6, Tile(16, 64, 64, 4, 2), Tile(64, 64, 16, 4, 2), torch.float16),
}
LISTED = "K5, in two shares"  # once more with a list of the cells that are needed
WITHOUT_RESIDUAL = "K9"
NAN = "NaN, to the end"
MANY = "more samples than a program holds"


def expected(x: Tensor, weight: Tensor, mixture: Tensor, grad: Tensor) -> list[Tensor]:
    """The convolved maps [B, C, S, S], and the gradients of maps, experts and mixture, in float64."""
    inputs = [tensor.double().requires_grad_() for tensor in (x, weight, mixture)]
    out = formula(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.double())]


def formula(x: Tensor, weight: Tensor, mixture: Tensor) -> Tensor:
    """The convolved maps [B, C, S, S]."""
    kernel = round(len(weight) ** 0.5)
    kernels = torch.einsum("be,teoi->boit", mixture, weight).unflatten(3, (kernel, kernel))
    return torch.cat(
        [functional.conv2d(one[None], own, padding=kernel // 2) for one, own in zip(x, kernels, strict=True)]
    )


def drawn(batch: int, size: int, channels: int, kernel: int, experts: int, dtype: torch.dtype) -> list[Tensor]:
    """Maps, experts, mixture and the gradient of the output."""
    return [
        torch.randn(batch, channels, size, size).to(dtype),
        torch.randn(kernel**2, experts, channels, channels),
        torch.randn(batch, experts).softmax(dim=1),
        torch.randn(batch, channels, size, size).to(dtype),
    ]


def upper(size: int, kernel: int) -> Needed:
    """Less than half of a map."""
    return needed(torch.ones(size, size, dtype=torch.bool).triu(2), kernel)


def errors(name: str, listed: bool = False) -> list[float]:
    """Errors of result and gradients, each kernel launched by itself; outputs hold NaN where nothing was written.

    If `listed`, some cells alone are needed: others are 0 in the result, and what their gradient holds is not read.
    """
    batch, size, channels, kernel, experts, tile, gradient_tile, dtype = CASES[name]
    x, weight, mixture, grad = drawn(batch, size, channels, kernel, experts, dtype)
    cells = upper(size, kernel) if listed else None
    outputs, inputs = (cells.outputs, cells.inputs) if cells else (None, None)
    grad = grad * cells.mask if cells else grad
    maps, grads = (tensor.permute(0, 2, 3, 1).contiguous() for tensor in (x, grad))
    nothing = torch.full((batch, kernel**2, channels, channels), torch.nan, dtype=dtype)
    kernels = triton_launch.mix(weight, mixture, nothing)
    out = triton_launch.convolve(maps, kernels, exact=True, cells=outputs, tile=tile)
    x_grad = triton_launch.convolve(grads, kernels, exact=True, backward=True, cells=inputs, tile=tile)
    kernels_grad = triton_launch.kernels_gradient(maps, grads, kernel, True, outputs, gradient_tile)
    wanted = expected(x, weight, mixture, grad)
    wanted[0] = wanted[0] * cells.mask if cells else wanted[0]
    found = [
        out.permute(0, 3, 1, 2),
        x_grad.permute(0, 3, 1, 2),
        *triton_launch.unmix(weight, mixture, kernels_grad, True),
    ]
    return [relative_error(*each) for each in zip(found, wanted, strict=True)]


def errors_to_the_end(name: str, listed: bool = False) -> list[float]:
    """Errors of a layer's result, and of the gradients of maps, experts, mixture and bias, through autograd.

    The formula's gradients are compared where ReLU's argument is not so near 0 that rounding decides.
    """
    batch, size, channels, kernel, experts, tile, gradient_tile, dtype = CASES[name]
    triton_launch.product_tile, triton_launch.gradient_tile = lambda *_: tile, lambda *_: gradient_tile
    x, weight, mixture, grad = drawn(batch, size, channels, kernel, experts, torch.float32)
    inputs = [x, weight / (kernel * channels**0.5), mixture, torch.randn(batch, channels)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    cells = upper(size, kernel) if listed else None
    epilogue = Epilogue((torch.rand(size, size) - 0.2).relu(), residual=name != WITHOUT_RESIDUAL)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    before = formula(*exact[:3]) + exact[3][:, :, None, None] + (exact[0] if epilogue.residual else 0)
    grad = grad * (before.abs() > 0.01) * (cells.mask if cells else 1)
    wanted = before.relu() * epilogue.factors * (cells.mask if cells else 1)
    with torch.autocast("cpu", torch.float16, enabled=dtype == torch.float16):
        out = sample_conv(*inputs[:3], "fused", cells, inputs[3], epilogue)
    found = [out.detach(), *torch.autograd.grad(out, inputs, grad)]
    expected = [wanted.detach(), *torch.autograd.grad(wanted, exact, grad.double())]
    return [relative_error(*each) for each in zip(found, expected, strict=True)]


def errors_of_nan() -> list[float]:
    """How many cells hold NaN where the formula does not, or the other way round; training stops by it."""
    x, weight, mixture, _ = drawn(2, 5, 8, 3, 3, torch.float32)
    x[0, 0, 1, 1] = torch.nan
    out = sample_conv(x, weight, mixture, "fused", None, torch.zeros(2, 8), Epilogue(torch.ones(5, 5), True))
    return [float((out.isnan() != (formula(x, weight, mixture) + x).isnan()).sum())]


def errors_of_many() -> list[float]:
    """Errors of the mixture's gradients of more samples than a program holds at once."""
    batch = triton_launch.UNMIX_ROWS + 3
    _, weight, mixture, _ = drawn(batch, 1, 5, 3, 3, torch.float32)
    grad = torch.randn(batch, 9, 5, 5)
    found = triton_launch.unmix(weight, mixture, grad, True)
    double = torch.einsum("be,bteoi->teoi", mixture.double(), grad.double()[:, :, None].expand(-1, -1, 3, -1, -1))
    shares = torch.einsum("btoi,teoi->be", grad.double(), weight.double())
    return [relative_error(*each) for each in zip(found, (double, shares), strict=True)]


def errors_of_product(name: str) -> list[float]:
    """Errors of a product whose kernels Triton mixes, as a GPU runs it, at the cells that are needed."""
    x, weight, mixture, grad = drawn(2, 5, 8, 3, 3, torch.float32)
    cells = upper(5, 3)
    grad = grad * cells.mask
    inputs = [tensor.requires_grad_() for tensor in (x, weight, mixture)]
    out = sample_conv(*inputs, product=name, needed=cells)
    found = [out.detach() * cells.mask, *torch.autograd.grad(out, inputs, grad)]
    whole, *gradients = expected(x, weight, mixture, grad)
    return [relative_error(*each) for each in zip(found, [whole * cells.mask, *gradients], strict=True)]


def take_scalars() -> None:
    """Has the interpreter of older Tritons count with NumPy 2.4, for which an array of one element is no number."""
    before = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        before(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def main() -> None:
    """Prints the errors by the name of the case or product."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    take_scalars()
    triton_launch.EXACT = "ieee"  # the interpreter knows no other
    mixing.triton_fault = lambda _: None  # the interpreter is on a CPU
    found = {name: errors(name) for name in CASES} | {name: errors_of_product(name) for name in PRODUCTS}
    found[f"{LISTED}, listed"] = errors(LISTED, listed=True)
    triton_launch.GATE_META |= {"ROWS": 16, "COLUMNS": 16}  # several programs
    found |= {f"{name}, to the end": errors_to_the_end(name) for name in CASES}
    found[f"{LISTED}, listed, to the end"] = errors_to_the_end(LISTED, listed=True)
    print(json.dumps(found | {NAN: errors_of_nan(), MANY: errors_of_many()}))  # noqa: T201


if __name__ == "__main__":
    main()
