"""The progress of one trial: a bar in a terminal, a line per epoch elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cdn_tune.console.output import err
from cdn_tune.training.report import EpochReport, StepReport


class TrainProgress:
    """Shows steps and epochs as they are reported.

    Args:
        metric: Name of the val metric that chooses epochs.
    """

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._best = ""
        self._task: TaskID | None = None
        self._bar: Progress | None = None
        if err.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f}{task.fields[best]}"),
                TimeRemainingColumn(),
                console=err,
                transient=True,
            )

    def on_step(self, step: StepReport) -> None:
        """Moves the bar."""
        if self._bar is None:
            return
        if self._task is None:
            self._task = self._bar.add_task("", total=step.steps, loss=0.0, best="")
        self._bar.update(
            self._task,
            description=f"epoch {step.epoch}",
            total=step.steps,
            completed=step.step,
            loss=step.loss,
            best=self._best,
        )

    def on_epoch(self, report: EpochReport) -> None:
        """Prints a line about a finished epoch."""
        self._best = f"  best {self._metric} {report.best_value:.4f} (epoch {report.best_epoch})"
        mark = " *" if report.best_epoch == report.epoch else ""
        line = (
            f"epoch {report.epoch:>3}/{report.epochs}  loss {report.loss:.4f}"
            f"  val {self._metric} {report.value:.4f}{mark}  lr {report.learning_rate:.2e}"
            f"  {report.samples_per_second:.1f} queries/s  {report.train_seconds:.1f}+{report.val_seconds:.1f} s"
        )
        err.print(line, markup=False, soft_wrap=True)

    def __enter__(self) -> TrainProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
