"""One dynamic layer to its end, forward and backward, against the published formulation and a static convolution.

``python -m benchmarks.dynamic_conv [--rounds N]`` measures in one process, taking turns: (a) ours, (b) the published
formulation, (c) a static convolution of the same shape, which is the limit. On a CPU that is the Charades-STA model's
fourth layer; on a GPU also the TACoS model's, ours with every product that works there and as it would choose, and
everything also in TensorFloat-32 and bf16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks._direct import DirectStaticConv2d, direct
from benchmarks._measure import MIB, alternate, peak_memory, publish, table
from cdn_tune.config import TrainConfig, load_experiment
from cdn_tune.model.cdn.dynamic_conv import DynamicConv2d
from cdn_tune.model.kernels.epilogue import Epilogue
from cdn_tune.model.kernels.needed import Needed
from cdn_tune.model.kernels.products import PRODUCTS
from cdn_tune.training.kernels.choose import choose_products
from cdn_tune.training.kernels.measure import Case, find_fault
from cdn_tune.training.runs.checkpoint import build_model
from cdn_tune.training.step.batch_loss import use_tf32
from cdn_tune.training.step.process_group import World

CHANNELS, KERNEL, EXPERTS, QUERY = 512, 5, 8, 512
LAYER = 3  # the fourth
CASES = {"charades/CDN-16x16-K5L8-pool": (8, 32), "tacos/CDN-128x128-K5L8-pool": (1, 4)}  # batches
AIM = 1.6


class Mode(NamedTuple):
    """A number format."""

    dtype: torch.dtype
    tf32: bool = False


MODES = {"float32": Mode(torch.float32), "TF32": Mode(torch.float32, True), "bfloat16": Mode(torch.bfloat16)}


class Inputs(NamedTuple):
    """What a layer is given, and the gradient of what it returns, which is 0 at cells that are not needed."""

    x: Tensor
    query: Tensor
    needed: Needed
    epilogue: Epilogue
    gradient: Tensor


def step(layer: nn.Module, inputs: Inputs, mode: Mode) -> Callable[[], None]:
    """Returns what is measured: one forward and one backward pass; gradients start from nothing."""

    def run() -> None:
        use_tf32(mode.tf32)
        layer.zero_grad(set_to_none=True)
        inputs.x.grad = None
        with torch.autocast(inputs.x.device.type, mode.dtype, enabled=mode.dtype != torch.float32):
            out = layer(inputs.x, inputs.query, inputs.needed, inputs.epilogue)
        out.backward(inputs.gradient.to(out.dtype))

    return run


def candidates(layer: DynamicConv2d, inputs: Inputs, mode: Mode) -> dict[str, Callable[[], None]]:
    """Returns what is measured on a GPU: our layer with each product that works there, and with the chosen one."""
    run, size, device = step(layer, inputs, mode), inputs.x.shape[3], inputs.x.device

    def with_product(product: str) -> Callable[[], None]:
        def work() -> None:
            layer.products = {size: product}
            run()

        return work

    use_tf32(mode.tf32)
    shape, batch = layer.shape(size), len(inputs.x)
    chosen = choose_products(TrainConfig(), (shape,), batch, mode.dtype, World(device=device))
    fit = [product for product in PRODUCTS if find_fault(Case(shape, batch, mode.dtype), product, device) is None]
    found = {f"ours, {product}": with_product(product) for product in fit}
    if chosen is not None:
        found[f"ours, as chosen: {chosen.of((shape,))[shape]}"] = with_product(chosen.of((shape,))[shape])
    return found


def layer_of(name: str, device: torch.device) -> tuple[Needed, Epilogue]:
    """Returns what a published experiment's fourth layer has for its map: cells that training needs, and its end."""
    model = build_model(load_experiment(name, {"model.hidden": 1})).train()  # of any width
    cells = model.map.cells[0].to(device)
    return cells.needed(LAYER), Epilogue(cells.weights[LAYER], model.map.residual)


def rows(name: str, batch: int, rounds: int, device: torch.device) -> list[list[str]]:
    """Returns the table's rows for one batch size; checks first that ours and the published formulation agree."""
    torch.manual_seed(0)
    ours = DynamicConv2d(CHANNELS, KERNEL, QUERY, EXPERTS).to(device)
    published, static = direct(ours).to(device), DirectStaticConv2d(ours).to(device)
    needed, epilogue = layer_of(name, device)
    size = len(needed.mask)
    x = torch.randn(batch, CHANNELS, size, size, device=device, requires_grad=True)
    inputs = Inputs(x, torch.randn(batch, QUERY, device=device), needed, epilogue, torch.randn_like(x) * needed.mask)
    use_tf32(False)
    with torch.no_grad():
        both = [layer(x, inputs.query, needed, epilogue)[..., needed.mask] for layer in (ours, published)]
    torch.testing.assert_close(*both, atol=1e-3, rtol=1e-3)
    work: dict[str, Callable[[], None]] = {}
    for kind, mode in MODES.items():
        if (kind == "TF32" and device.type == "cpu") or (kind == "bfloat16" and not has_bf16(device)):
            continue
        contenders = {"ours": step(ours, inputs, mode)} if device.type == "cpu" else candidates(ours, inputs, mode)
        contenders |= {"published": step(published, inputs, mode), "static": step(static, inputs, mode)}
        work |= {f"{who}, {kind}": each for who, each in contenders.items()}
    seconds = alternate(work, rounds)
    found = []
    for who, run in work.items():
        base, limit = (seconds[f"{rival}, {who.rpartition(', ')[2]}"] for rival in ("published", "static"))
        times = [f"{seconds[who] * 1e3:.2f} ms", f"{base / seconds[who]:.2f}x", f"{seconds[who] / limit:.2f}x"]
        found.append([f"{size}x{size}", f"{batch}", who, *times, f"{peak_memory(run) / MIB:.0f} MiB"])
    return found


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bf16 (elsewhere it is emulated, and says nothing)."""
    return device.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())


def main() -> None:
    """Prints the section of the results and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = CASES if device.type == "cuda" else dict(list(CASES.items())[:1])
    found = [
        row
        for name, batches in cases.items()
        for batch in batches
        for row in rows(name, batch, arguments.rounds, device)
    ]
    notes = [] if has_bf16(device) else ["", "bf16: not measured, this processor has no AVX512-BF16."]
    if device.type == "cpu":
        notes += ["", f"The products of a GPU ({', '.join(PRODUCTS)}): not measured on a GPU."]
    publish(
        "dynamic_conv",
        [
            "## One dynamic layer",
            "",
            f"`python -m benchmarks.dynamic_conv`: forward and backward of one layer on {device.type}, from its "
            f"convolution to ReLU, {CHANNELS} "
            f"channels, kernel {KERNEL}, {EXPERTS} experts, the cells that training needs of the published model's "
            f"fourth layer, medians of {arguments.rounds} rounds in turns. Speed and time are against the same format. "
            f"Aim on a CPU: at least {AIM}x the published formulation's speed, at most {AIM}x a static convolution's "
            "time; on a Hopper in bf16 at 16x16 at least 2.4x (batch 8) and 3.4x (32), at most 1.5x; at 128x128, batch "
            "1, at most 1x.",
            "",
            *table(
                ["map", "batch", "what", "time", "speed against published", "time against static", "peak memory"], found
            ),
            *notes,
        ],
    )


if __name__ == "__main__":
    main()
