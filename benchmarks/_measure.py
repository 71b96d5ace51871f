"""How the benchmarks measure: contenders in turns, so that noise meets all of them; peak memory from the kernel."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from pathlib import Path

import torch
from scipy import stats

from cdn_tune.model.kernels.mixed_conv import workspace

RESULTS = Path(__file__).resolve().parent / "results"
MIB = 1 << 20
_RESET_PEAK = "5"


def alternate(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Runs every contender once unmeasured, then all in turns; returns each one's median seconds."""
    for work in contenders.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            _synchronise()
            start = time.perf_counter()
            work()
            _synchronise()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(work: Callable[[], object]) -> int:
    """Returns by how many bytes `work` raises the peak of the process (of the GPU, where there is one).

    On a CPU this is the resident memory as Linux counts it, scratch space of libraries included.
    """
    gc.collect()
    workspace.clear()  # it counts, although training allocates it once
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not sys.platform.startswith("linux"):
        raise OSError("peak memory on a CPU is read from /proc, which only Linux has")
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def publish(name: str, lines: list[str]) -> list[str]:
    """Prints a section of the results and writes it to ``benchmarks/results/NAME.md``; returns its lines.

    What was measured on a GPU is a section of its own, ``NAME_gpu.md``, which names the GPU.
    """
    if torch.cuda.is_available():
        name, lines = f"{name}_gpu", [f"{lines[0]} on a GPU", "", f"{torch.cuda.get_device_name()}.", *lines[1:]]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), end="\n\n", flush=True)
    return lines


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Returns a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def mean(values: Sequence[float], sign: str = "", digits: int = 1) -> str:
    """Returns the mean over seeds with its 95 % interval (Student's t), which takes two seeds."""
    middle, form = statistics.mean(values), f"{sign}.{digits}f"
    if len(values) < 2:
        return f"{middle:{form}}"
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / sqrt(len(values))
    return f"{middle:{form}} [{middle - reach:{form}}, {middle + reach:{form}}]"


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
