"""Searches with a family, a sampler, a stopping rule and a metric of one's own, once they are installed.

`pip install examples/own_parts && python examples/own_parts/demo.py`
"""

from pathlib import Path

import cdn_tune
from cdn_tune.data.planted import plant

data = Path("data/planted")
if not data.exists():
    plant(data)

space = {
    "name": "example-own-parts",
    "parameters": {
        "optim.lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
        "model.width": {"type": "int", "low": 16, "high": 64},
    },
    "trials": 2,
    "sampler": {"name": "halton"},
    "early_stopping": {"name": "hopeless"},
}
fixed = {"data.root": data, "model.name": "parts", "eval.metric": "start@0.1", "train.epochs": 2}
run = cdn_tune.search(space, fixed, experiment="demo/small", run="runs/example-own-parts")
print(f"best val {run.best.metric} {run.best.value:.4f}, by {dict(run.best.params or {})}")
