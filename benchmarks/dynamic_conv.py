"""One dynamic layer, forward and backward, against the published formulation and a static convolution.

``python -m benchmarks.dynamic_conv [--batch B ...] [--rounds N]`` measures in one process, taking turns: (a) ours, (b)
the published formulation, (c) a static convolution of the same shape, which is the limit. On a GPU ours is measured
with every product that works there and as it would choose, and everything also in bf16; without one it says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks._direct import DirectStaticConv2d, direct
from benchmarks._measure import MIB, alternate, peak_memory, publish, table
from cdn_tune.config import TrainConfig
from cdn_tune.model.cdn.dynamic_conv import DynamicConv2d
from cdn_tune.model.kernels.products import PRODUCTS
from cdn_tune.training.kernels.choose import choose_products
from cdn_tune.training.kernels.measure import Case, find_fault
from cdn_tune.training.step.batch_loss import use_tf32
from cdn_tune.training.step.process_group import World

CHANNELS, SIZE, KERNEL, EXPERTS, QUERY = 512, 16, 5, 8, 512
AIM = 1.6


def step(layer: nn.Module, x: Tensor, query: Tensor, gradient: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Returns what is measured: one forward and one backward pass; gradients start from nothing."""

    def run() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            out = layer(x, query)
        out.backward(gradient.to(out.dtype))

    return run


def candidates(
    layer: DynamicConv2d, x: Tensor, query: Tensor, gradient: Tensor, dtype: torch.dtype
) -> dict[str, Callable[[], None]]:
    """Returns what is measured on a GPU: our layer with each product that works there, and with the chosen one."""
    run = step(layer, x, query, gradient, dtype)

    def with_product(product: str) -> Callable[[], None]:
        def work() -> None:
            layer.products = {SIZE: product}
            run()

        return work

    shape = layer.shape(SIZE)
    chosen = choose_products(TrainConfig(), (shape,), len(x), dtype, World(device=x.device))
    case = Case(shape, len(x), dtype)
    fit = [product for product in PRODUCTS if find_fault(case, product, x.device) is None]
    found = {f"ours, {product}": with_product(product) for product in fit}
    if chosen is not None:
        found[f"ours, as chosen: {chosen.of((shape,))[shape]}"] = with_product(chosen.of((shape,))[shape])
    return found


def rows(batch: int, rounds: int, device: torch.device) -> list[list[str]]:
    """Returns the table's rows for one batch size; checks first that ours and the published formulation agree."""
    torch.manual_seed(0)
    ours = DynamicConv2d(CHANNELS, KERNEL, QUERY, EXPERTS).to(device)
    published, static = direct(ours).to(device), DirectStaticConv2d(ours).to(device)
    x = torch.randn(batch, CHANNELS, SIZE, SIZE, device=device, requires_grad=True)
    query, gradient = torch.randn(batch, QUERY, device=device), torch.randn_like(x)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, query), published(x, query), atol=1e-3, rtol=1e-3)
    formats = [torch.float32, torch.bfloat16] if has_bf16(device) else [torch.float32]
    work: dict[str, Callable[[], None]] = {}
    for dtype in formats:
        name = str(dtype).removeprefix("torch.")
        if device.type == "cuda":
            work |= {
                f"{product}, {name}": each for product, each in candidates(ours, x, query, gradient, dtype).items()
            }
        else:
            work[f"ours, {name}"] = step(ours, x, query, gradient, dtype)
        work[f"published, {name}"] = step(published, x, query, gradient, dtype)
        work[f"static, {name}"] = step(static, x, query, gradient, dtype)
    seconds = alternate(work, rounds)
    base, limit = seconds["published, float32"], seconds["static, float32"]
    return [
        [
            f"{batch}",
            name,
            f"{seconds[name] * 1e3:.1f} ms",
            f"{base / seconds[name]:.2f}x",
            f"{seconds[name] / limit:.2f}x",
            f"{peak_memory(run) / MIB:.0f} MiB",
        ]
        for name, run in work.items()
    ]


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bf16 (elsewhere it is emulated, and says nothing)."""
    return device.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())


def main() -> None:
    """Prints the section of the results and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tf32", action="store_true", help="float32 of all contenders in TensorFloat-32, on a GPU")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    use_tf32(arguments.tf32)
    found = [row for batch in arguments.batch for row in rows(batch, arguments.rounds, device)]
    notes = [] if has_bf16(device) else ["", "bf16: not measured, this processor has no AVX512-BF16."]
    if device.type == "cuda":
        notes += ["", f"float32 of all contenders {'in TensorFloat-32' if arguments.tf32 else 'exact'}."]
    else:
        notes += ["", f"The products of a GPU ({', '.join(PRODUCTS)}): not measured on a GPU."]
    publish(
        "dynamic_conv",
        [
            "## One dynamic layer",
            "",
            f"`python -m benchmarks.dynamic_conv`: forward and backward of one layer on {device.type}, {CHANNELS} "
            f"channels, {SIZE}x{SIZE} cells, all computed, kernel {KERNEL}, {EXPERTS} experts, medians of "
            f"{arguments.rounds} rounds in turns. Aim: at least {AIM}x the published formulation's speed, at most "
            f"{AIM}x a static convolution's time.",
            "",
            *table(
                ["batch", "what", "time", "speed against published fp32", "time against static fp32", "peak memory"],
                found,
            ),
            *notes,
        ],
    )


if __name__ == "__main__":
    main()
