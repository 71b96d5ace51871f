"""Progress: of counted work as a bar; of one trial as a bar in a terminal, as a line per epoch elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn

from cdn_tune.cli.show.output import err, print_note

if TYPE_CHECKING:
    from cdn_tune.config import Experiment
    from cdn_tune.training.reports import EpochReport, StepReport


@contextmanager
def counted(text: str, *columns: str | ProgressColumn, visible: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar, at once if `visible`, else when it first moves; yields the function (done, total) that moves it."""
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(text, total=None, visible=visible)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)


def build_clips(experiment: Experiment) -> None:
    """Builds the node's clip cache for an experiment's train and val splits where it is missing."""
    from cdn_tune.data.dataset import load_splits

    with counted("building the clip cache", visible=False) as progress:
        load_splits(experiment.data, ("train", "val"), progress, experiment.model.inputs.sequences)


class TrainProgress:
    """Shows steps and epochs as they are reported; `metric` is the val metric that chooses among the `epochs`.

    What is reported before the first step was trained by an earlier command: one line sums it up.
    """

    def __init__(self, metric: str, epochs: int) -> None:
        self._metric, self._epochs, self._best = metric, epochs, ""
        self._last: EpochReport | None = None
        self._has_begun = False
        self._task: TaskID | None = None
        self._bar: Progress | None = None
        if err.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.1f} queries/s{task.fields[best]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("left"),
                console=err,
                transient=True,
            )

    def on_step(self, step: StepReport) -> None:
        """Moves the bar."""
        if not self._has_begun:
            self._has_begun = True
            self._begin(step)
        if self._bar is None:
            return
        done = (step.epoch - 1) * step.steps + step.step
        if self._task is None:
            total = self._epochs * step.steps
            self._task = self._bar.add_task("", total=total, completed=done, loss=0.0, rate=0.0, best="")
        text = f"epoch {step.epoch}/{self._epochs} step {step.step}/{step.steps}"
        fields: dict[str, Any] = {"loss": step.loss, "rate": step.samples_per_second, "best": self._best}
        self._bar.update(self._task, description=text, completed=done, **fields)

    def _begin(self, step: StepReport) -> None:
        """Prints from where the training goes on, if it does not begin."""
        last, within = self._last, f"step {step.step - 1} of epoch {step.epoch}" if step.step > 1 else ""
        if last is not None:
            within = f", {within}" if within else ""
            print_note(f"going on after epoch {last.epoch}/{self._epochs}{within}{self._best}")
        elif within:
            print_note(f"going on after {within}")

    def on_epoch(self, report: EpochReport) -> None:
        """Prints a line about a finished epoch, once."""
        is_new = self._has_begun and (self._last is None or report.epoch > self._last.epoch)
        if not self._has_begun or is_new:
            self._last = report
        self._best = f"  best {self._metric} {report.best_value:.4f} (epoch {report.best_epoch})"
        if not is_new:  # an earlier command's, or reported again by workers that have replaced lost ones
            return
        mark = " *" if report.best_epoch == report.epoch else ""
        val = f"  val {self._metric} {report.value:.4f}{mark}" if report.val else ""
        print_note(
            f"epoch {report.epoch:>3}/{self._epochs}  loss {report.loss:.4f}{val}  lr {report.learning_rate:.2e}"
            f"  {report.samples_per_second:.1f} queries/s  {report.train_seconds:.1f}+{report.val_seconds:.1f} s"
        )
        if report.is_last and report.epoch < self._epochs:
            print_note(f"stopped early: no better val {self._metric} since epoch {report.best_epoch}")

    def __enter__(self) -> TrainProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
