"""The Triton kernels are the formula, gradients too: in Triton's interpreter, which needs no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cdn_tune.model.kernels import mixing
from cdn_tune.model.kernels.mixing import mix, triton_fault, unmix

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = importlib.util.find_spec("triton") is not None
NAMES = ["K3", "K5, in two shares", "K7, in three shares", "K9", "K3, float16"]
NAMES += ["K5, in two shares, listed"]
NAMES += [f"{name}, to the end" for name in NAMES] + ["NaN, to the end", "more samples than a program holds"]
PRODUCTS = ["published", "rows", "cudnn", "triton", "fused"]


@pytest.fixture(scope="module")
def found() -> dict[str, list[float]]:
    """Errors by case, from a process whose Triton interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.model.triton_cases"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.skipif(not INSTALLED, reason="Triton is not installed")
@pytest.mark.parametrize("name", [*NAMES, *PRODUCTS])
def test_equals_the_formula(found: dict[str, list[float]], name: str) -> None:
    within = 1e-3 if "float16" in name else 1e-6
    assert len(found) == len(NAMES) + len(PRODUCTS)
    assert all(error < within for error in found[name]), found[name]


@pytest.mark.parametrize("order", ["tap", "out", "torch"])
@pytest.mark.parametrize("reverse", [False, True])
def test_torch_mixes_in_any_order(order: mixing.Order, reverse: bool) -> None:
    torch.manual_seed(0)
    weight, mixture = torch.randn(9, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    found = mix(weight, mixture, torch.float64, order, reverse)
    expected = torch.einsum("be,teoi->btoi", mixture, weight)
    torch.testing.assert_close(found, expected.flip(1) if reverse else expected)
    inner = {"tap": 3, "out": 3, "torch": 1}[order]
    assert found.stride(inner) == 1


def test_torch_adds_the_shares_of_a_gradient() -> None:
    torch.manual_seed(0)
    weight, mixture, grad = torch.randn(9, 3, 4, 5), torch.randn(2, 3), torch.randn(2, 9, 4, 5)
    shares = torch.cat([0.25 * grad, 0.75 * grad])
    for mine, theirs in zip(unmix(weight, mixture, shares), unmix(weight, mixture, grad), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_triton_that_fails_is_told_once_and_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: torch.device) -> list[float]:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(mixing, "triton_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(mixing, "_errors", fail)
    triton_fault.cache_clear()
    try:
        assert triton_fault(gpu) == triton_fault(gpu) == "RuntimeError: Failed to find C compiler. Please specify one"
        assert len(caplog.records) == 1
        assert "\n" not in caplog.text.strip()
        triton_fault.cache_clear()
        for errors, wrong in ([1e-7, 2e-7, 3e-7], False), ([1e-7, 0.1, 1e-7], True), ([1e-7, float("nan"), 1e-7], True):
            monkeypatch.setattr(mixing, "_errors", lambda _, errors=errors: errors)
            triton_fault.cache_clear()
            assert (triton_fault(gpu) is not None) == wrong
    finally:
        triton_fault.cache_clear()


def test_without_triton_torch_mixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "triton_installed", lambda: False)
    triton_fault.cache_clear()
    assert triton_fault(torch.device("cuda", 0)) == "it is not installed"
    triton_fault.cache_clear()
    assert triton_fault(torch.device("cpu")) == "it computes on GPUs alone"
