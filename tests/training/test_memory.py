"""Memory: the estimate agrees with what is kept, and what does not fit is halved."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cdn_tune.config import Experiment
from cdn_tune.errors import MemoryShortage
from cdn_tune.training.memory.device import (
    UNKNOWN,
    _cgroup_bytes,
    available_bytes,
    fit_micro_batch,
    peak_bytes,
)
from cdn_tune.training.memory.estimate import MemoryEstimate, estimate
from cdn_tune.training.runs.checkpoint import build_model

Tiny = Callable[..., Experiment]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
NEED = MemoryEstimate(weights=100, gradients=100, optimiser=200, activations=10)
STATIC = {"model.map.dynamic_layers": 0}
SHAPES = {
    "dynamic": {"model.hidden": 32, "model.clips": 16},
    "static": {"model.hidden": 32, "model.clips": 16, **STATIC},
    "conv": {"model.hidden": 32, "model.clips": 16, "model.proposals": "conv"},
    "valid": {"model.hidden": 32, "model.clips": 16, "model.map.norm_over": "valid"},
    "tiled": {"model.hidden": 208, "model.map.kernel_size": 5},
}


def saved_bytes(experiment: Experiment, queries: int) -> int:
    """What a real forward pass keeps besides the model, mixed kernels among it where they are small."""
    model, data = build_model(experiment).train(), experiment.data
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    mask = torch.ones(queries, 30, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        visual = torch.rand(queries, data.frames, data.feature_size)
        model(visual, torch.rand(queries, 30, data.word_size), mask)
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    sizes = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in saved}
    return sum(size for storage, size in sizes.items() if storage not in own)


@pytest.mark.parametrize("shape", SHAPES)
def test_activations_agree_with_a_real_model(tiny: Tiny, shape: str) -> None:
    experiment = tiny(**SHAPES[shape])
    measured = saved_bytes(experiment, 3) - saved_bytes(experiment, 2)
    kernels = 32**2 * 9 * 4 if experiment.model.map.dynamic_layers and shape != "tiled" else 0
    expected = estimate(experiment, torch.float32, CPU).activations
    assert 0.5 < expected / (measured - kernels) < 2


def test_weights_are_the_models_bytes(tiny: Tiny) -> None:
    model = build_model(tiny())
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    need = estimate(tiny(), torch.float32, CPU)
    assert (need.weights, need.gradients, need.optimiser) == (parameters + buffers, parameters, 2 * parameters)
    assert need.ema == 0
    assert estimate(tiny(**{"train.ema": 0.9}), torch.float32, CPU).ema == need.weights
    fixed = need.weights + need.gradients + need.optimiser + need.copies
    assert need.total(5) == fixed + 5 * (need.activations + need.temporary)


def test_kernels_mixed_per_query_count_as_long_as_a_layer_may_keep_them(tiny: Tiny) -> None:
    """Their size does not depend on the number of clips: it shows with a small map."""
    wide = {"model.hidden": 256, "model.map.kernel_size": 5, "model.clips": 4}
    dynamic, static = (estimate(tiny(**wide, **more), torch.float32, GPU) for more in ({}, STATIC))
    kernel = 256**2 * 25 * 4
    assert abs(dynamic.activations - static.activations) < kernel / 20
    assert dynamic.temporary == static.temporary + kernel
    experts = 2 * kernel  # the largest parameter, counted among the copies
    assert dynamic.copies - static.copies - (experts - kernel) >= 2 * kernel  # a few at once, and their gradients


def test_short_numbers_halve_activations_at_most(tiny: Tiny) -> None:
    experiment = tiny(**SHAPES["dynamic"])
    full, short = (estimate(experiment, dtype, GPU) for dtype in (torch.float32, torch.bfloat16))
    assert 0.5 * full.activations <= short.activations < 0.9 * full.activations
    assert short.weights == full.weights
    assert short.copies > 0


def test_nothing_is_computed(tiny: Tiny) -> None:
    state = torch.get_rng_state()
    estimate(tiny(), torch.float32)
    assert torch.equal(torch.get_rng_state(), state)


def out_of_memory_above(most: int, error: Exception, tried: list[int]) -> Callable[[int], None]:
    def attempt(size: int) -> None:
        tried.append(size)
        if size > most:
            raise error

    return attempt


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_halves_until_it_fits(error: Exception) -> None:
    tried: list[int] = []
    assert fit_micro_batch(21, NEED, 10_000, out_of_memory_above(5, error, tried)) == 3
    assert tried == [21, 11, 6, 3]


@pytest.mark.parametrize(("available", "first"), [(720, 32), (719, 16), (560, 16), (559, 8), (410, 1)])
def test_begins_where_the_estimate_says(available: int, first: int) -> None:
    tried: list[int] = []
    assert fit_micro_batch(32, NEED, available, out_of_memory_above(99, MemoryError(), tried)) == first
    assert tried == [first]


def test_an_estimate_alone_refuses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cdn_tune.training.memory.device"):
        assert fit_micro_batch(4, NEED, 10, lambda _: None) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_one_query_too_many_is_an_error() -> None:
    with pytest.raises(MemoryShortage, match=r"out of memory with one query.* GiB needed, .* available; lower") as told:
        fit_micro_batch(4, NEED, 10_000, out_of_memory_above(0, torch.OutOfMemoryError("no"), []))
    assert "data.frames or the sizes under model" in str(told.value)
    assert "\n" not in str(told.value)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        fit_micro_batch(4, NEED, 10_000, out_of_memory_above(0, RuntimeError("shapes do not match"), []))


def test_available_and_peak() -> None:
    assert 1 << 20 < available_bytes(CPU) < UNKNOWN
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert peak_bytes(CPU) == pytest.approx(int(status["VmHWM"].split()[0]) << 10, rel=0.05)


def test_limits_of_control_groups(tmp_path: Path) -> None:
    def group(folder: Path, **files: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    group(tmp_path, memory__max="max\n", memory__current="5\n")
    group(tmp_path / "a", memory__max="1000\n", memory__current="700\n", memory__stat="anon 1\ninactive_file 50\n")
    group(tmp_path / "a/b", memory__max="2000\n", memory__current="600\n")
    group(tmp_path / "memory/c", memory__limit_in_bytes="300\n", memory__usage_in_bytes="400\n")
    membership = tmp_path / "membership"
    membership.write_text("9:cpu:/c\n4:memory:/c\n0::/a/b\n")
    assert list(_cgroup_bytes(tmp_path, membership)) == [0, 1400, 350]
    assert list(_cgroup_bytes(tmp_path, tmp_path / "missing")) == []


def test_sizing_a_model_loads_no_compiler() -> None:
    """Four seconds of every process that sizes one, were its constants computed on the meta device."""
    code = (
        "import sys\n"
        "from cdn_tune.config import load_experiment\n"
        "from cdn_tune.training.memory.estimate import checkpoint_bytes, count_parameters\n"
        "for name in ('charades/CDN-16x16-K5L8-pool', 'tacos/CDN-128x128-K5L8-conv'):\n"
        "    experiment = load_experiment(name)\n"
        "    print(count_parameters(experiment) > 0, checkpoint_bytes(experiment) > 0)\n"
        "print(sorted({'torch._dynamo', 'sympy'} & set(sys.modules)))\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.splitlines() == ["True True", "True True", "[]"], done.stderr
