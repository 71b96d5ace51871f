"""A trial's state: copied, written in the background, resumed exactly where it stopped; and the best model, kept."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch

from cdn_tune.config import DATA_PATHS, Experiment, TrainConfig, build
from cdn_tune.data.files import brief
from cdn_tune.data.mark import Mark
from cdn_tune.errors import CheckpointError
from cdn_tune.model.family import MomentModel
from cdn_tune.training.kernels.choose import Chosen
from cdn_tune.training.memory.device import is_shortage
from cdn_tune.training.memory.estimate import written_bytes
from cdn_tune.training.reports import EpochReport
from cdn_tune.training.runs.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    START,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)
from cdn_tune.training.runs.run_folder import first_difference
from cdn_tune.training.step.optimiser import Ema, Schedule, uses_length
from cdn_tune.training.step.process_group import World
from cdn_tune.training.step.steps import EpochState

_LOG = logging.getLogger(__name__)


class Saving(Protocol):
    """Called around every checkpoint that is written, in the thread that writes it."""

    def check(self) -> None:
        """Raises if nothing may be written."""

    def best_saved(self) -> None:
        """Called when the best model is on disk, without a checkpoint."""

    def saved(self, epoch: int, step: int, history: Sequence[dict[str, Any]]) -> None:
        """Called when a checkpoint is on disk, with finished epochs, steps into the next, and the epochs' reports."""


class Writer:
    """Runs jobs one after the other in a thread, so that training waits for a copy in memory, not for a disk.

    An error of a job is raised by the next call here.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="cdn-tune-writer")
        self._job: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Starts a job, once the one before has ended."""
        self.wait()
        self._job = self._pool.submit(job)

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the job, so long or to its end; returns whether nothing is left to be written."""
        if self._job is None:
            return True
        if wait([self._job], seconds).not_done:
            return False
        job, self._job = self._job, None
        job.result()
        return True

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self.wait()


class Snapshots:
    """Copies of a state on the CPU; each takes the memory of the one before, because fresh memory takes far longer."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], torch.Tensor] = {}

    def take(self, value: Any, where: tuple[Any, ...] = ()) -> Any:
        """Returns a copy of nested dicts, lists and tuples whose tensors are shared with the next copy alone.

        `where` is the place of `value` in the whole.
        """
        if isinstance(value, torch.Tensor):
            kept = self._kept.get(where)
            if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
                kept = self._kept[where] = torch.empty(value.shape, dtype=value.dtype)
            return kept.copy_(value.detach())
        if isinstance(value, dict):
            return {key: self.take(item, (*where, key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.take(item, (*where, place)) for place, item in enumerate(value))
        return value


@dataclass
class Progress:
    """Where a trial stands."""

    history: list[EpochReport] = field(default_factory=list)  # the finished epochs
    within: EpochState | None = None  # how far the next epoch is, if it has begun

    @property
    def epoch(self) -> int:
        """The last finished epoch; 0 before the first."""
        return len(self.history)

    @property
    def best_value(self) -> float:
        """Best val metric so far; below every metric before the first epoch."""
        return self.history[-1].best_value if self.history else -1.0

    @property
    def best_epoch(self) -> int:
        """The epoch of that."""
        return self.history[-1].best_epoch if self.history else 0

    @property
    def is_finished(self) -> bool:
        """Whether the last epoch is done."""
        return bool(self.history) and self.history[-1].is_last


@dataclass
class TrialState:
    """Everything of a trial that changes while it trains, on one of its workers."""

    experiment: Experiment
    folder: Path
    model: MomentModel
    optimiser: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    ema: Ema | None  # running mean of the weights, if wanted
    world: World
    planted: Mark  # whether the data are planted; recorded in the checkpoints
    saving: Saving | None = None  # called around every checkpoint
    kernels: Chosen | None = None  # how its dynamic layers are multiplied, where there was a choice
    snapshots: Snapshots = field(default_factory=Snapshots)  # memory for copies
    best: dict[str, Any] | None = None  # the best model, on worker 0, while it is not on disk

    @property
    def evaluated(self) -> MomentModel:
        """The model that is evaluated and kept."""
        return self.model if self.ema is None else self.ema.model  # type: ignore[return-value]

    @property
    def size(self) -> int:
        """Bytes of a checkpoint and of the best model, as they are written together."""
        return written_bytes(self.experiment, self.model)

    @property
    def _products(self) -> dict[str, Any]:
        return {} if self.kernels is None else {"kernels": self.kernels.model_dump()}

    def remember_best(self, progress: Progress) -> None:
        """Copies the model, on worker 0, if the last epoch is the best so far; the next checkpoint writes it.

        The job that writes must have ended: copies share their memory.
        """
        if self.world.is_main and progress.best_epoch == progress.epoch:
            weights = self.snapshots.take(dict(self.evaluated.state_dict()), ("best",))
            val = progress.history[-1].val
            self.best = {
                "model": weights,
                "epoch": progress.epoch,
                "val": val,
                "planted": self.planted,
                **self._products,
            }

    def prepare_save_best(self) -> Callable[[], None]:
        """Returns the job that writes the best model alone; a no-op where it is on disk, and but on worker 0.

        A trial that goes on from an earlier state comes to that model again.
        """
        best, self.best = self.best, None

        def write() -> None:
            if best is None:
                return
            if self.saving is not None:
                self.saving.check()
            save_checkpoint(self.folder / BEST, self.experiment, best)
            if self.saving is not None:
                self.saving.best_saved()

        return write

    def prepare_save(self, progress: Progress, within: EpochState | None = None) -> Callable[[], None]:
        """Copies the state, on every worker; returns the job that writes it, a no-op but on worker 0.

        The job before must have ended: copies share their memory. The job writes the best model unless it is on disk,
        then `last`: a resumed trial never lacks its best. The `last` before stays as `previous`.
        """
        generators = self.world.gather(_generator_state(self.world))
        sums = None if within is None or within.sums is None else self.world.gather(within.sums.clone())
        if not self.world.is_main:
            return lambda: None
        last: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else [self.ema.model.state_dict(), self.ema.updates],
            "generators": generators,
            "history": [report.plain() for report in progress.history],
            "within": None if within is None else [within.step, sums, within.norms, within.seconds],
        }
        last |= self._products
        last = self.snapshots.take(last)
        best, self.best = self.best, None
        epoch, step, saving = progress.epoch, 0 if within is None else within.step, self.saving

        def write() -> None:
            if saving is not None:
                saving.check()
            if best is not None:
                save_checkpoint(self.folder / BEST, self.experiment, best)
            save_checkpoint(self.folder / LAST, self.experiment, last, self.folder / PREVIOUS)
            if saving is not None:
                saving.saved(epoch, step, last["history"])

        return write

    def read(self) -> dict[str, Any] | None:
        """Returns what the folder's last checkpoint holds, or, with a warning, the one before, if it is damaged.

        Raises:
            CheckpointError: If both are.
        """
        last, previous = self.folder / LAST, self.folder / PREVIOUS
        if not last.exists():
            return read_checkpoint(previous) if previous.exists() else None
        try:
            return read_checkpoint(last)
        except CheckpointError as error:
            if not previous.exists():
                raise
            content = read_checkpoint(previous)
            _LOG.warning("%s; going on from the checkpoint before it, %s", error, previous)
            return content

    def resume(self, content: dict[str, Any] | None) -> Progress:
        """Goes on from what `read` has returned.

        A trial that begins takes the weights of ``start.pt``, if there is one. The checkpoint's experiment may have
        had another number of epochs, if no learning rate depends on it.

        Raises:
            CheckpointError: If it holds no state of a training, or of another experiment.
        """
        if content is None:
            if (start := self.folder / START).exists():
                weights = read_checkpoint(start)["model"]
                for model in {self.model, self.evaluated}:
                    load_weights(model, weights, start)
            return Progress()
        try:
            return self._restore(content)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if is_shortage(error):
                raise
            raise CheckpointError(
                f"{self.folder / LAST}: holds no state of a training ({type(error).__name__}: {brief(error)}); "
                "delete it and start again"
            ) from None

    def _restore(self, content: dict[str, Any]) -> Progress:
        path = self.folder / LAST
        held = build(Experiment, content["experiment"], f"{path}: experiment")
        if not uses_length(self.experiment.optim):
            held = with_epochs(held, self.experiment.train.epochs)
        if difference := first_difference(held.plain(), self.experiment.plain(), DATA_PATHS):
            raise CheckpointError(f"{path}: belongs to another experiment ({difference}); choose another folder")
        settings = self.experiment.train
        load_weights(self.model, content["model"], path)
        self.optimiser.load_state_dict(content["optimiser"])
        self.schedule.load_state_dict(content["schedule"])
        self.scaler.load_state_dict(content["scaler"])
        if self.ema is not None:
            weights, self.ema.updates = content["ema"]
            load_weights(self.ema.model, weights, path)
        same = len(content["generators"]) == self.world.size
        if same:
            _restore_generators(content["generators"][self.world.rank], self.world)
        history = [EpochReport.read(report) for report in content["history"]]
        ends = [epochs_in_all(report.epoch, report.best_epoch, settings) for report in history]
        progress = Progress([replace(report, epochs=end) for report, end in zip(history, ends, strict=True)])
        if content["within"] is not None:
            step, sums, norms, seconds = content["within"]
            whole = sum(sums, torch.zeros_like(sums[0])) * float(self.world.is_main)  # with other workers than before
            progress.within = EpochState(step, sums[self.world.rank] if same else whole, norms, seconds)
        return progress


def epochs_in_all(epoch: int, best_epoch: int, settings: TrainConfig) -> int:
    """Returns after which epoch training ends, as known after one: that one, if `train.patience` has run out."""
    return epoch if 0 < settings.patience <= epoch - best_epoch else settings.epochs


def with_epochs(experiment: Experiment, epochs: int) -> Experiment:
    """Returns an experiment of so many epochs."""
    return experiment.model_copy(update={"train": experiment.train.model_copy(update={"epochs": epochs})})


def _generator_state(world: World) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(world.device)
    return state


def _restore_generators(state: dict[str, torch.Tensor], world: World) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and world.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], world.device)
