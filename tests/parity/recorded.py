"""The recorded arrays of published implementations, for the tests beside this file."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdn_tune.model.published import from_published
from cdn_tune.model.weights import Published

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity"
needs_arrays = pytest.mark.skipif(not PARITY.is_dir(), reason=f"{PARITY} is absent")


@lru_cache
def load(name: str) -> dict[str, Any]:
    with np.load(PARITY / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def part(arrays: dict[str, Any], prefix: str) -> dict[str, torch.Tensor]:
    return {
        key.removeprefix(prefix): torch.from_numpy(value.copy())
        for key, value in arrays.items()
        if key.startswith(prefix) and value.dtype.kind in "fiub"
    }


def rebuild(name: str, family: str) -> tuple[Published, dict[str, Any], dict[str, Any]]:
    """The model, the arrays and the published settings."""
    arrays = load(name)
    settings: dict[str, Any] = json.loads(str(arrays["config"]))
    return from_published(part(arrays, "state."), settings, family), arrays, settings


def close(found: torch.Tensor, expected: Any, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found.detach(), torch.as_tensor(expected), atol=tolerance, rtol=0, check_dtype=False)


def train(
    model: Published, given: dict[str, torch.Tensor], optimiser: torch.optim.Optimizer, clip: float = torch.inf
) -> tuple[list[dict[str, float]], list[float]]:
    """Four steps: the parts of each step's loss, and the norms of its gradient before clipping."""
    model.train()
    seen, norms = [], []
    for _ in range(4):
        losses = model.losses(given)
        optimiser.zero_grad()
        losses["total"].backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip)))
        optimiser.step()
        seen.append({name: loss.item() for name, loss in losses.items()})
    return seen, norms


def check_course(arrays: dict[str, Any], prefix: str, seen: list[dict[str, float]], norms: list[float]) -> None:
    """Checks every recorded course of a training: totals, parts, gradient norms."""
    names = {"losses": "total"}
    for key, values in part(arrays, prefix).items():
        name = names.get(key, key)
        if name in seen[0]:
            assert [step[name] for step in seen] == pytest.approx(values.tolist(), rel=1e-4), key
    expected = np.atleast_1d(arrays[f"{prefix}grad_norm"])
    assert norms[: len(expected)] == pytest.approx(expected.tolist(), rel=1e-3)


def grad_norms(model: Published, given: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, float]:
    """The norm of the first gradient of every parameter, by published name."""
    model.train().zero_grad()
    model.losses(given)["total"].backward()
    found = {}
    for ours, parameter in model.model.named_parameters():
        assert parameter.grad is not None
        found[names[ours]] = float(parameter.grad.norm())
    return found


CHANGES = ["missing", "unknown", "misshapen", "not finite"]


def spoil(state: dict[str, torch.Tensor], change: str, name: str, unknown: str) -> str:
    """Spoils an entry of published weights in one of the ways of `CHANGES`; returns the entry to be named."""
    if change == "missing":
        del state[name]
    elif change == "unknown":
        name = unknown
        state[name] = torch.zeros(1)
    elif change == "misshapen":
        state[name] = state[name][:5]
    else:
        state[name] = state[name] * float("nan")
    return name
