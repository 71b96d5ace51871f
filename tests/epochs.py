"""Epochs as a trial records them."""

from typing import Any

from cdn_tune.training.reports import EpochReport


def epoch_line(epoch: int, value: float, epochs: int = 3, **more: Any) -> dict[str, Any]:
    """Returns an epoch as ``metrics.jsonl`` has it, the best so far unless told otherwise."""
    report = EpochReport(
        **{
            "epoch": epoch, "epochs": epochs, "loss": 1 / epoch, "losses": {}, "learning_rate": 1e-3,
            "gradient_norm": 1.0, "samples_per_second": 100.0, "train_seconds": 2.0, "val_seconds": 1.0,
            "val": {"R1@0.5": value}, "value": value, "best_value": value, "best_epoch": epoch, **more,
        }
    )  # fmt: skip
    return report.plain()
