"""Times the ways of multiplying mixed kernels on the real shapes, and checks each against the published formulation.

Letters: B batch, C channels, S clips, E experts, K kernel size.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdn_tune.data.files import brief
from cdn_tune.model.kernels.epilogue import Epilogue
from cdn_tune.model.kernels.mixing import relative_error
from cdn_tune.model.kernels.products import PUBLISHED, MixedShape
from cdn_tune.model.kernels.sample_conv import sample_conv
from cdn_tune.training.kernels.card import format_name
from cdn_tune.training.memory.device import is_shortage
from cdn_tune.training.step.batch_loss import autocast

Timer = Callable[[Mapping[str, Callable[[], object]]], Mapping[str, float]]
# The greatest error, of the result and of each gradient, relative to float64.
LIMITS = {"fp32": 3e-6, "tf32": 1.5e-3, "fp16": 1e-2, "bf16": 1e-2}
_CHECKED = 2  # samples
_MARGIN = 0.05  # about 0, before ReLU: there rounding decides whether a gradient passes, and none is checked
_WARM, _ROUNDS = 2, 7


class Case(NamedTuple):
    """What is measured: one layer to its end, forward and backward."""

    shape: MixedShape
    batch: int
    dtype: torch.dtype

    @property
    def key(self) -> str:
        """Names the case; batches up to the same power of two are one."""
        return f"{format_name(self.dtype)} B{1 << (self.batch - 1).bit_length()} {self.shape}"


class Measurement(NamedTuple):
    """What was found of a case."""

    milliseconds: dict[str, float]  # medians, of those that work
    dropped: dict[str, str]  # why others do not
    short: bool  # whether one lacked memory, which it may have another time


def milliseconds(work: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Times work on the current GPU: all once, warm, then in turns, so that what disturbs meets all; medians."""
    for each in work.values():
        for _ in range(_WARM):
            each()
    spans: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(_ROUNDS):
        for name, each in work.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            each()
            end.record()
            end.synchronize()
            spans[name].append(start.elapsed_time(end))
    return {name: statistics.median(each) for name, each in spans.items()}


def measure(case: Case, names: Sequence[str], device: torch.device, timer: Timer = milliseconds) -> Measurement:
    """Checks and times products; one that fails or is wrong is dropped. No random number of the training is drawn.

    Where memory does not suffice for any of them, half the batch is measured: training will compute less of it at once.
    """
    found = _measured(case, names, device, timer)
    if found.milliseconds or not found.short or case.batch == 1:
        return found
    return measure(case._replace(batch=case.batch // 2), names, device, timer)


def _measured(case: Case, names: Sequence[str], device: torch.device, timer: Timer) -> Measurement:
    dropped: dict[str, str] = {}
    work: dict[str, Callable[[], object]] = {}
    short = False
    try:
        with _undrawn(device):
            inputs, grad = _drawn(case, case.batch, device)
    except Exception as error:
        if is_shortage(error):
            return Measurement({}, {}, True)
        raise
    faults = _faults(case, names, device)
    for name in names:
        fault, step = faults.get(name), _step(inputs, grad, name, case.dtype)
        if fault is None:
            try:
                step()
            except Exception as error:  # of a compiler, a driver, a card that lacks something
                fault = _Fault.of(error)
        if fault is None:
            work[name] = step
        else:
            dropped[name], short = fault.text, short or fault.short
    try:
        found = dict(timer(work)) if work else {}
    except Exception as error:  # another process may have taken the memory meanwhile
        if not is_shortage(error):
            raise
        found, short = {}, True
    del inputs, grad, work, step
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Measurement(found, dropped, short)


def find_fault(case: Case, name: str, device: torch.device) -> str | None:
    """Returns why a product cannot be used: it fails, or differs; None if it can."""
    fault = _faults(case, [name], device).get(name)
    return None if fault is None else fault.text


class _Fault(NamedTuple):
    """Why a product cannot be used."""

    text: str
    short: bool = False  # whether it lacked memory

    @classmethod
    def of(cls, error: Exception) -> "_Fault":
        return cls(f"{type(error).__name__}: {brief(error)}", is_shortage(error))


def _faults(case: Case, names: Sequence[str], device: torch.device) -> dict[str, _Fault]:
    """Returns by name why products cannot be used: they fail, or differ from the published formulation in float64."""

    @cache
    def checked() -> tuple[list[Tensor], Tensor, tuple[Tensor, ...]]:
        """Returns inputs, the gradient of the output, and the results expected; one that fails is tried again."""
        with _undrawn(device):
            inputs, grad = _drawn(case, min(_CHECKED, case.batch), device)
        x, weight, mixture, bias = exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
        before = sample_conv(x, weight, mixture, PUBLISHED) + bias[:, :, None, None] + x
        grad = grad * (before.abs() > _MARGIN)
        out = before.relu() * _epilogue(x).factors
        return inputs, grad, (out.detach(), *torch.autograd.grad(out, exact, grad.double()))

    faults: dict[str, _Fault] = {}
    limit = LIMITS[format_name(case.dtype)]
    for name in names:
        if name == PUBLISHED:
            continue
        try:
            inputs, grad, expected = checked()
            found = _results(inputs, grad, name, case.dtype)
            errors = [relative_error(mine, theirs) for mine, theirs in zip(found, expected, strict=True)]
        except Exception as error:  # of a compiler, a driver, a card that lacks something
            faults[name] = _Fault.of(error)
            continue
        if not all(error < limit for error in errors):
            by = ", ".join(f"{each:.1e}" for each in errors)
            faults[name] = _Fault(f"differs from the published formulation by {by}, not {limit:.1e}")
    return faults


def _undrawn(device: torch.device) -> Any:
    """Returns a context after which random numbers go on as before."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _drawn(case: Case, batch: int, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Draws maps, experts, mixture and bias, and the gradient of the layer's result.

    Maps are channels last and float32, as normalisation in the network leaves them.
    """
    channels, kernel, experts, size = case.shape
    maps = [torch.randn(batch, size, size, channels, device=device).permute(0, 3, 1, 2) for _ in range(2)]
    weight = torch.randn(kernel**2, experts, channels, channels, device=device) / (kernel * channels**0.5)
    mixture = torch.randn(batch, experts, device=device).softmax(dim=1)
    bias = torch.randn(batch, channels, device=device)
    return [tensor.requires_grad_() for tensor in (maps[0], weight, mixture, bias)], maps[1]


def _epilogue(x: Tensor) -> Epilogue:
    """Returns the end of a layer, for maps [B, C, S, S]."""
    size = x.shape[3]
    return Epilogue(torch.linspace(0.1, 1, size**2, device=x.device).view(size, size), residual=True)


def _results(inputs: Sequence[Tensor], grad: Tensor, name: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Returns the layer's result, and the gradients of maps, experts, mixture and bias."""
    x, weight, mixture, bias = inputs
    with autocast(x.device, dtype):
        out = sample_conv(x, weight, mixture, name, None, bias, _epilogue(x))
    return (out.detach(), *torch.autograd.grad(out, inputs, grad))


def _step(inputs: Sequence[Tensor], grad: Tensor, name: str, dtype: torch.dtype) -> Callable[[], object]:
    return lambda: _results(inputs, grad, name, dtype)
