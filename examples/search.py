"""Searches a space written in Python on planted data: `python examples/search.py`."""

from pathlib import Path
from typing import Any

import cdn_tune
from cdn_tune.data.planted import plant

data = Path("data/planted")
if not data.exists():
    plant(data)

space = {
    "name": "example-search",
    "parameters": {
        "optim.lr": {"type": "float", "low": 3e-4, "high": 1e-2, "log": True},
        "model.map.layers": {"type": "int", "low": 1, "high": 3},
    },
    "trials": 3,
    "sampler": {"name": "tpe", "startup_trials": 2},
    "early_stopping": {"name": "asha", "min_resource": 1},
}


def show(row: dict[str, Any]) -> None:
    """Prints a trial that has ended, as the leaderboard has it."""
    print(f"trial {row['trial']} {row['state']}: val R1@0.5 {row.get('value')}")


run = cdn_tune.search(
    space,
    {"data.root": data, "train.epochs": 2},
    experiment="demo/small",
    run="runs/example-search",
    on_trial=show,
)
print(run.leaderboard())
print(f"trial {run.best.trial} is the best: {run.best.params}")
