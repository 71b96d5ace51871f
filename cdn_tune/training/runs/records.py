"""The records of a trial: metrics.jsonl and TensorBoard events."""

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cdn_tune.config import Experiment, keys
from cdn_tune.data.files import parse_json
from cdn_tune.errors import RunError
from cdn_tune.training.reports import EpochReport
from cdn_tune.training.runs.files import write_errors, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"
_TRAIN = ("loss", "learning_rate", "gradient_norm", "samples_per_second")
_MIB = 1 << 20


def _event_writer(folder: Path, step: int) -> "SummaryWriter":
    """Returns TensorBoard's writer of a folder, in which what was recorded from a step on no longer counts."""
    from torch.utils.tensorboard import SummaryWriter  # torch, which reading the records does not need

    return SummaryWriter(str(folder), purge_step=step)


class Records:
    """Writes every epoch to ``metrics.jsonl`` and to TensorBoard.

    Args:
        folder: The trial's folder.
        history: The epochs that a resumed trial has finished; what was recorded beyond them is deleted.
        enabled: Whether this worker writes.
    """

    def __init__(self, folder: Path, history: list[EpochReport], enabled: bool = True) -> None:
        self._path, self._events = folder / METRICS, folder / EVENTS
        self._captioned = any(report.val for report in history)  # pictures come with evaluations
        self._writer: SummaryWriter | None = None
        self._excepthook = threading.excepthook
        if not enabled:
            return
        write_text(self._path, "".join(json.dumps(report.plain()) + "\n" for report in history))
        threading.excepthook = self._on_thread_error
        try:
            with write_errors(self._events):
                self._writer = _event_writer(self._events, len(history) + 1)
        except RunError:
            threading.excepthook = self._excepthook
            raise

    def write(self, report: EpochReport) -> None:
        """Records one epoch."""
        with write_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(report.plain()) + "\n")
        if self._writer is None:
            return
        with write_errors(self._events):
            for name, value in scalars(report).items():
                self._writer.add_scalar(name, value, report.epoch)
            self._writer.flush()

    def pictures(self, epoch: int, drawn: Mapping[str, npt.NDArray[np.uint8]], captions: Mapping[str, str]) -> None:
        """Records pictures in TensorBoard; their queries' texts too, once in a trial.

        Args:
            epoch: After which epoch they were drawn.
            drawn: RGB pictures [height, width, 3] by name.
            captions: Texts by query id, shown as ``queries/ID``.
        """
        if self._writer is None:
            return
        with write_errors(self._events):
            for name, picture in drawn.items():
                self._writer.add_image(name, picture, epoch, dataformats="HWC")
            if not self._captioned:
                for name, text in captions.items():
                    self._writer.add_text(f"queries/{name}", text, epoch)
                self._captioned = True
            self._writer.flush()

    def hparams(self, experiment: Experiment, best_value: float, best_epoch: int) -> None:
        """Records the experiment and its best val metric for TensorBoard's HParams, among the trial's other events.

        Numbers, texts and switches are recorded under their dotted keys, the metric as ``hparam/METRIC``.
        """
        if self._writer is None:
            return
        from torch.utils.tensorboard.summary import hparams as hparams_summaries

        plain = keys.flatten(experiment.plain())
        values = {key: value for key, value in plain.items() if isinstance(value, int | float | str)}
        metric = f"hparam/{experiment.eval.metric}"
        with write_errors(self._events):
            # SummaryWriter.add_hparams would open a sub-folder, which TensorBoard shows as another run.
            summaries = hparams_summaries(values, {metric: best_value})  # type: ignore[no-untyped-call]
            for summary in summaries:
                self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]  # untyped in torch
            self._writer.add_scalar(metric, best_value, best_epoch)
            self._writer.flush()

    def __enter__(self) -> "Records":
        return self

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """Passes on what a thread raised, but for TensorBoard's thread that writes: the next call raises that again."""
        if not (isinstance(error.exc_value, OSError) and type(error.thread).__module__.startswith("tensorboard.")):
            self._excepthook(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        try:
            with suppress(*([RunError] if kind else [])), write_errors(self._events):  # the first error is the cause
                self._writer.close()
        finally:
            threading.excepthook = self._excepthook


def scalars(report: EpochReport) -> dict[str, float]:
    """Returns what TensorBoard and MLflow show of an epoch, by name."""
    found = {f"train/{name}": getattr(report, name) for name in _TRAIN}
    found |= {f"train/{name}": value for name, value in report.losses.items()}
    found["time/train_seconds"] = report.train_seconds
    if report.peak_bytes:
        found["train/peak_memory_mib"] = report.peak_bytes / _MIB
    if report.val:
        found["time/val_seconds"] = report.val_seconds
        found |= {f"val/{name}": value for name, value in report.val.items()}
    return found


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns a trial's epochs as recorded, up to a line that was cut short by a crash or is no epoch's."""
    path = folder / METRICS
    return parse_metrics(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else []


def parse_metrics(text: str) -> list[dict[str, Any]]:
    """Returns the epochs in the text of a metrics.jsonl, as `read_metrics` does."""
    entries: list[dict[str, Any]] = []
    for line in text.splitlines():
        try:
            entry = parse_json(line)
            report = EpochReport.read(entry)
        except ValueError:
            break
        if report.epoch != len(entries) + 1 or not 1 <= report.best_epoch <= report.epoch:
            break
        entries.append(entry)
    return entries
