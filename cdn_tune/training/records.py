"""What a trial leaves to read: metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from cdn_tune.training.files import told, write_text
from cdn_tune.training.report import EpochReport

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"


class Records:
    """Writes every epoch to ``metrics.jsonl`` and to TensorBoard.

    Args:
        folder: The trial's folder.
        history: The epochs that a trial taken up again has finished; what was recorded beyond them goes.
        enabled: Whether this worker writes.
    """

    def __init__(self, folder: Path, history: list[EpochReport], enabled: bool = True) -> None:
        self._path = folder / METRICS
        self._writer: SummaryWriter | None = None
        if not enabled:
            return
        write_text(self._path, "".join(json.dumps(report.plain()) + "\n" for report in history))
        with told(folder / EVENTS):
            self._writer = SummaryWriter(str(folder / EVENTS), purge_step=len(history) + 1)

    def write(self, report: EpochReport) -> None:
        """Records one epoch."""
        with told(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(report.plain()) + "\n")
        if self._writer is None:
            return
        for name in ("loss", "moment_loss", "attention_loss", "learning_rate", "gradient_norm", "samples_per_second"):
            self._writer.add_scalar(f"train/{name}", getattr(report, name), report.epoch)
        for name, value in report.val.items():
            self._writer.add_scalar(f"val/{name}", value, report.epoch)
        self._writer.flush()

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns a trial's epochs as recorded; a last line cut short by a crash is left out."""
    path = folder / METRICS
    entries: list[dict[str, Any]] = []
    if not path.exists():
        return entries
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries
