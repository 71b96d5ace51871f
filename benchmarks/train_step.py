"""A whole training step of the published experiments, against the same model on the published formulation.

``python -m benchmarks.train_step [--rounds N]`` builds both models with equal weights in one process and measures in
turns: forward, losses, backward, gradient clipping and Adam. A second table gives the memory a step needs beyond
weights, gradients and optimiser state.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks._direct import make_direct
from benchmarks._measure import MIB, alternate, peak_memory, publish, table
from benchmarks.dynamic_conv import has_bf16
from cdn_tune.config import Experiment, load_experiment
from cdn_tune.model.cdn.loss import attention_loss, moment_loss
from cdn_tune.model.cdn.network import CDN
from cdn_tune.model.kernels.sample_conv import compiled
from cdn_tune.moments.temporal_map import iou_maps
from cdn_tune.training.kernels.choose import choose_products
from cdn_tune.training.step.graphs import CudaCapture, StepGraphs
from cdn_tune.training.step.optimiser import build_optimiser
from cdn_tune.training.step.process_group import World

WORDS = 15
MEMORY_BATCH = 32
CASES = (("charades/CDN-16x16-K5L8-pool", 8, 1.4), ("tacos/CDN-128x128-K5L8-pool", 1, 2.0))
GPU_CASES = (
    ("charades/CDN-16x16-K5L8-pool", 8, 2.2),
    ("charades/CDN-16x16-K5L8-pool", 32, 1.0),
    ("charades/CDN-16x16-K5L8-conv", 8, 1.0),
    ("activitynet/CDN-64x64-K9L4-pool", 4, 1.0),
    ("tacos/CDN-128x128-K5L8-pool", 1, 1.75),
)
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")


@dataclass(frozen=True)
class Inputs:
    """A batch of random data, the same for all contenders."""

    visual: Tensor  # [B, T, D]
    words: Tensor  # [B, L, W]
    mask: Tensor  # [B, L]
    targets: Tensor  # [B, S, S]


def random_inputs(experiment: Experiment, batch: int, device: torch.device) -> Inputs:
    """Returns a batch of the experiment's shapes."""
    generator = torch.Generator().manual_seed(0)
    data = experiment.data
    starts = torch.rand(batch, generator=generator) * 20
    moments = torch.stack([starts, starts + 8], dim=1)
    return Inputs(
        torch.randn(batch, data.frames, data.feature_size, generator=generator).to(device),
        torch.randn(batch, WORDS, data.word_size, generator=generator).to(device),
        torch.ones(batch, WORDS, dtype=torch.bool, device=device),
        iou_maps(torch.full((batch,), 30.0), moments, experiment.model.clips).float().to(device),
    )


def build(experiment: Experiment, device: torch.device, *, published: bool) -> CDN:
    """Returns the experiment's model; equal weights whatever the formulation."""
    torch.manual_seed(0)
    model = CDN(experiment.model, experiment.data.feature_size, experiment.data.word_size)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # both must compute the same
    return (make_direct(model) if published else model).to(device).train()


def losses(model: nn.Module, experiment: Experiment, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """Returns the training loss."""
    settings = experiment.loss
    with torch.autocast(inputs.visual.device.type, dtype, enabled=dtype != torch.float32):
        output = model(inputs.visual, inputs.words, inputs.mask)
    loss = moment_loss(output.logits.float(), inputs.targets, output.mask, settings.min_iou, settings.max_iou)
    return loss + settings.attention_beta * attention_loss(output.attention.float(), settings.attention_lambda)


def step(
    model: nn.Module,
    experiment: Experiment,
    inputs: Inputs,
    dtype: torch.dtype = torch.float32,
    *,
    as_graph: bool = False,
) -> Callable[[], float]:
    """Returns what is measured: one optimiser step, with `as_graph` recorded by the first call and then replayed."""
    optimiser = build_optimiser(model, experiment.optim)
    shapes, world = model.mixed_shapes, World(device=inputs.visual.device)
    kernels = choose_products(experiment.train, shapes, len(inputs.visual), dtype, world)  # None on a CPU

    def update(inputs: Inputs) -> Tensor:
        if kernels is not None:
            model.use_products(kernels.of(shapes))
        optimiser.zero_grad(set_to_none=True)
        loss = losses(model, experiment, inputs, dtype)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), experiment.optim.clip_norm)
        optimiser.step()
        return loss.detach()

    if not as_graph:
        return lambda: update(inputs).item()
    graphs = StepGraphs(optimiser, CudaCapture(inputs.visual.device))
    graphs.step(inputs, update, record=True)  # the first is not recorded
    return lambda: graphs.step(inputs, update, record=True).item()


def speed(rounds: int, device: torch.device) -> list[list[str]]:
    """Returns the rows of the table of times; checks first that both contenders see the same loss.

    On a GPU each is measured by itself and as a graph, which holds what a step does but its launches.
    """
    found = []
    on_gpu = device.type == "cuda"
    for name, batch, aim in GPU_CASES if on_gpu else CASES:
        experiment = load_experiment(name)
        inputs = random_inputs(experiment, batch, device)
        models = {"ours": build(experiment, device, published=False)}
        models["published"] = build(experiment, device, published=True)
        with torch.no_grad():
            first = [losses(model, experiment, inputs, torch.float32) for model in models.values()]
        torch.testing.assert_close(first[0], first[1], atol=1e-4, rtol=1e-4)
        work = {f"{who}, float32": step(model, experiment, inputs) for who, model in models.items()}
        if on_gpu:
            for who, model in models.items():
                work[f"{who}, bfloat16"] = step(model, experiment, inputs, torch.bfloat16)
                work[f"{who}, as a graph, bfloat16"] = step(model, experiment, inputs, torch.bfloat16, as_graph=True)
            work["ours, compiled, bfloat16"] = step(compiled(models["ours"]), experiment, inputs, torch.bfloat16)
        elif has_bf16(device):
            work["ours, bfloat16"] = step(models["ours"], experiment, inputs, torch.bfloat16)
        seconds = alternate(work, rounds)
        for who, value in seconds.items():
            base = seconds[f"published, {who.rpartition(', ')[2] if on_gpu else 'float32'}"]
            row = [name, f"{batch}", who, f"{value * 1e3:.1f} ms", f"{base / value:.2f}x"]
            found.append([*row, f">= {aim}x" if who.startswith("ours") else ""])
            if on_gpu:
                found[-1] += [f"{launches(work[who])}", f"{peak_memory(work[who]) / MIB:.0f} MiB"]
        del models, work
        gc.collect()
    return found


def launches(work: Callable[[], object]) -> int:
    """Returns how often work has a GPU do something: kernels that the host launches, and graphs."""
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        work()
    return sum(event.count for event in profile.key_averages() if event.key.startswith(_LAUNCHES))


def memory(device: torch.device) -> list[list[str]]:
    """Returns the rows of the table of memory: one model at a time."""
    name = CASES[0][0]
    experiment = load_experiment(name)
    inputs = random_inputs(experiment, MEMORY_BATCH, device)
    peaks = {}
    for who in ("ours", "published"):
        model = build(experiment, device, published=who == "published")
        gradients = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        run = step(model, experiment, inputs)
        run()  # creates the optimiser's state
        model.zero_grad(set_to_none=True)
        peaks[who] = peak_memory(run) - gradients
        del model, run
        gc.collect()
    return [
        [name, f"{MEMORY_BATCH}", who, f"{peak / MIB:.0f} MiB", f"{peak / peaks['published']:.2f}"]
        for who, peak in peaks.items()
    ]


def main() -> None:
    """Prints the section of the results and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    publish(
        "train_step",
        [
            "## A whole training step",
            "",
            f"`python -m benchmarks.train_step`: forward, losses, backward, clipping and Adam on {device.type}, 249 "
            f"million parameters, random data, medians of {rounds} rounds in turns. The published formulation differs "
            "in the map's convolutions only; optimiser and all else are the same.",
            "",
            *table(
                ["experiment", "batch", "what", "time", "speed against published", "aim"]
                + (["launches", "peak memory"] if device.type == "cuda" else []),
                speed(rounds, device),
            ),
            "",
            "Memory of a step beyond weights, gradients and optimiser state; aim: at most half.",
            "",
            *table(["experiment", "batch", "what", "memory", "share of the published"], memory(device)),
        ],
    )


if __name__ == "__main__":
    main()
