"""Trains one small model on planted data, with a callback: `python examples/train.py`."""

from pathlib import Path

import cdn_tune
from cdn_tune.data.planted import plant

data = Path("data/planted")
if not data.exists():
    plant(data)


def show(report: cdn_tune.EpochReport) -> bool:
    """Prints an epoch; returning True ends the training in order."""
    print(f"epoch {report.epoch}: loss {report.loss:.4f}, val {report.val}")
    return report.best_value > 0.9


run = cdn_tune.train("demo/small", {"data.root": data, "train.epochs": 3}, run="runs/example-train", on_epoch=show)
print(run.epochs())
print(f"best val {run.best.metric} {run.best.value:.4f} after epoch {run.best.epoch}: {run.best.checkpoint}")
