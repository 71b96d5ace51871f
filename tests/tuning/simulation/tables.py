"""Tables of made-up learning curves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cdn_tune.tuning.simulation.curves import Curves, Header, Recorded

from ..virtual_search import BASE, make_space

EPOCHS = 8
METRICS = ("R1@0.5", "mIoU")


def make_record(parameters: dict[str, Any], seed: int, noise: float = 0.0, **more: Any) -> Recorded:
    """A curve that rises towards a peak at a learning rate of 10**-2.5; deeper maps are a little better and slower."""
    draw = np.random.default_rng([seed, int(1e6 * parameters["optim.lr"]), parameters["model.map.layers"]])
    peak = 0.7 - abs(math.log10(parameters["optim.lr"]) + 2.5) / 4 + 0.02 * parameters["model.map.layers"]
    rise = peak * (1 - np.exp(-np.arange(1, EPOCHS + 1) / 3))
    val, test = (np.round(np.clip(rise + noise * draw.normal(size=EPOCHS), 0, 1), 4).tolist() for _ in range(2))
    seconds = np.round(np.cumsum(np.full(EPOCHS, 1.0 + 0.25 * parameters["model.map.layers"])), 3).tolist()
    plain = {
        "parameters": parameters,
        "seed": seed,
        "val": {"R1@0.5": val, "mIoU": val},
        "test": {"R1@0.5": test},
        "loss": (1 - rise).round(4).tolist(),
        "seconds": seconds,
        "steps": 10,
        "start_seconds": 0.5,
        "evaluation_seconds": 0.1,
        **more,
    }
    return Recorded.model_validate(plain)


def make_header(**more: Any) -> Header:
    """The header of such curves."""
    plain = {
        "about": "made up",
        "planted": False,
        "metric": "R1@0.5",
        "epochs": EPOCHS,
        "parameters": make_space().plain()["parameters"],
        **more,
    }
    return Header.model_validate(plain)


def make_curves(count: int = 60, seeds: int = 2, noise: float = 0.02) -> Curves:
    """A table of such curves at random points."""
    draw = np.random.default_rng(0)
    points = [
        {"optim.lr": float(10 ** draw.uniform(-4, -1)), "model.map.layers": int(draw.integers(1, 5))}
        for _ in range(count)
    ]
    records = [make_record(point, seed, noise) for point in points for seed in range(seeds)]
    return Curves("made-up.jsonl", False, make_header(), records, [EPOCHS] * len(records))


LONG = BASE.model_copy(update={"train": BASE.train.model_copy(update={"epochs": EPOCHS})})
