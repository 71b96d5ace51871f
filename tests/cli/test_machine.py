"""`cdn-tune doctor` tells what dynamic layers are computed with, and why not with something else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.cli.machine import machine_lines

CARD = {
    "name": "NVIDIA H200",
    "capability": "9.0",
    "driver": "580.95.05",
    "torch": "2.13.0+cu130",
    "cuda": "13.0",
    "cudnn": "91300",
    "triton": "3.9.0",
    "source": "abc",
}
CHOICES: dict[str, Any] = {
    "bf16 B8 C512 K5 E8 S16": {
        "product": "rows",
        "milliseconds": {"published": 3.1, "rows": 0.9},
        "dropped": {"triton": "OutOfResources: shared memory"},
    }
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    assert "no GPU" in CliRunner().invoke(app, ["doctor"]).output
    found = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).output)
    assert (found["card"], found["choices"]) == (None, {})
    assert found["triton"]["fault"] == "it computes on GPUs alone"


@pytest.mark.parametrize(
    ("version", "fault", "told"),
    [
        ("3.9.0", None, "Triton 3.9.0 mixes kernels"),
        ("3.9.0", "RuntimeError: no C compiler", "Triton 3.9.0 is not used, torch mixes kernels: RuntimeError: no C"),
        (None, "it is not installed", "Triton is not installed, torch mixes kernels: pip install 'cdn-tune[gpu]'"),
    ],
)
def test_a_gpu_has_what_is_used_and_what_is_not(version: str | None, fault: str | None, told: str) -> None:
    found = {"card": CARD, "triton": {"version": version, "fault": fault}, "choices": CHOICES}
    card, triton, case, dropped = machine_lines(found)
    assert "NVIDIA H200: capability 9.0, driver 580.95.05" in card
    assert triton.startswith(told)
    assert case == "bf16 B8 C512 K5 E8 S16: rows (published 3.10 ms, rows 0.90 ms)"
    assert dropped == "  triton is not used: OutOfResources: shared memory"


def test_a_gpu_on_which_nothing_was_measured() -> None:
    *_, last = machine_lines({"card": CARD, "triton": {"version": None, "fault": ""}, "choices": {}})
    assert "measured yet" in last
