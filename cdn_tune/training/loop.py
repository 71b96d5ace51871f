"""The training loop: trains one trial, from the first step or from its last checkpoint."""

import random
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from cdn_tune.config import Experiment
from cdn_tune.data.annotations import Split
from cdn_tune.data.dataset import MomentDataset
from cdn_tune.data.mark import Mark
from cdn_tune.errors import ConfigError
from cdn_tune.model.family import MomentModel
from cdn_tune.model.kernels.sample_conv import compiled
from cdn_tune.training.evaluate.evaluation import evaluate_split
from cdn_tune.training.evaluate.pictures import captions, draw
from cdn_tune.training.kernels.choose import choose_products
from cdn_tune.training.memory.device import choose_micro_batch, memory_errors, peak_bytes
from cdn_tune.training.reports import Decisions, EpochReport, OnStep, Report, Stop, ignore, pack_ious
from cdn_tune.training.runs.checkpoint import LAST, build_model
from cdn_tune.training.runs.pace import Pace
from cdn_tune.training.runs.records import Records
from cdn_tune.training.runs.run_folder import record_in_manifest
from cdn_tune.training.state import Progress, Saving, TrialState, Writer, epochs_in_all
from cdn_tune.training.step.batch_loss import resolve_precision, use_tf32
from cdn_tune.training.step.graphs import CudaCapture, StepGraphs, are_static
from cdn_tune.training.step.optimiser import Ema, build_optimiser, build_schedule
from cdn_tune.training.step.process_group import World, this_world
from cdn_tune.training.step.steps import Engine, EpochState, EpochTotals, global_batches, queries_at_once

_PROMPT = 0.5  # seconds that an epoch's report waits for its checkpoint before the next epoch begins
_AGREE_SECONDS = 0.25  # after which several workers agree whether to save or stop
_MOST_STEPS = 100  # and after so many steps at most


@dataclass(frozen=True)
class TrainResult:
    """How a trial ended."""

    best_value: float  # best val metric
    best_epoch: int  # its epoch
    epochs_run: int  # epochs finished by this call; 0 if the trial was already finished


def never() -> bool:
    """Returns False: nothing stops the training."""
    return False


@memory_errors("while training")
def train(
    experiment: Experiment,
    folder: Path,
    report: Report,
    splits: Mapping[Split, MomentDataset],
    on_step: OnStep = ignore,
    planted: Mark = False,
    stop: Callable[[], bool | Stop] = never,
    saving: Saving | None = None,
    decisions: Decisions | None = None,
) -> TrainResult:
    """Trains one trial; called on every one of its workers.

    Files in `folder`: ``checkpoints/last.pt`` (to go on exactly) and ``previous.pt`` (the one before),
    ``checkpoints/best.pt`` (the model of the best epoch on val), ``metrics.jsonl`` and TensorBoard events. A trial
    whose ``last.pt`` exists goes on from there. The checkpoints are written when they are due by `train.checkpoint`,
    when `decisions` need them, at a stop and at the end; the best model waits in memory for that.

    Args:
        experiment: What to train.
        folder: The trial's folder.
        report: Called by worker 0 after every epoch, if a checkpoint is due then when that is on disk; also for the
            epochs that a resumed trial had finished before. It may raise to end the trial.
        splits: The train and val splits.
        on_step: Called by worker 0 after every optimiser step.
        planted: Whether the data are planted; recorded in the checkpoints.
        stop: Called after every step, with several workers four times a second; once it returns true on worker 0 the
            state is saved, unless that is `Stop.DISCARD`, and `KeyboardInterrupt` raised.
        saving: Called around every checkpoint.
        decisions: With which reports a search may stop or pause the trial; none if None.

    Raises:
        NotFinite: If a loss, a gradient or a score is not finite.
        MemoryShortage: If memory does not suffice.
        CheckpointError: If the folder's checkpoints are damaged or of another experiment.
        KeyboardInterrupt: If `stop` returned true.
    """
    world = this_world()
    if world.is_main:
        for unfinished in (folder / LAST).parent.glob(".*.tmp"):  # a write that was killed
            unfinished.unlink()
    _check_sizes(experiment, splits, world)
    seed_everything(experiment.seed, world.rank)
    use_tf32(experiment.train.tf32)
    dtype = resolve_precision(experiment.train.precision, world.device)
    model = build_model(experiment).to(world.device)
    ema = Ema(model, experiment.train.ema, experiment.train.ema_warmup) if experiment.train.ema else None
    optimiser = build_optimiser(model, experiment.optim, model.text_part)
    batches = global_batches(splits["train"], experiment, 1, world)
    steps = len(batches)
    schedule = build_schedule(optimiser, experiment.optim, steps * experiment.train.epochs, steps)
    scaler = torch.amp.GradScaler(world.device.type, enabled=dtype == torch.float16)
    state = TrialState(experiment, folder, model, optimiser, schedule, scaler, ema, world, planted, saving)
    content = state.read()
    held = None if content is None else content.get("kernels")
    at_once = queries_at_once(experiment.train, batches, world)
    state.kernels = choose_products(experiment.train, model.mixed_shapes, at_once, dtype, world, held)
    if state.kernels is not None:
        for each in (model, state.evaluated):
            each.use_products(state.kernels.of(model.mixed_shapes))
        if world.is_main:
            record_in_manifest(folder, "kernels", state.kernels.model_dump())
    micro_batch = choose_micro_batch(experiment, model, splits["train"], batches, world, dtype)
    progress = state.resume(content)
    del content  # as large as the state
    first = progress.epoch
    wrapped = _wrap(model, experiment, world)
    lags = world.device.type == "cuda"
    static = are_static(experiment, model, world, dtype, micro_batch)
    graphs = StepGraphs(optimiser, CudaCapture(world.device)) if static else None
    engine = Engine(
        experiment, wrapped, optimiser, schedule, world, dtype, scaler, micro_batch, ema, lags=lags, graphs=graphs
    )
    with Records(folder, progress.history, enabled=world.is_main) as records, Writer() as writer:
        pace = Pace(experiment.train.checkpoint, state.size, time.monotonic())
        training = _Training(engine, state, progress, splits, records, writer, report, stop, pace, decisions)
        try:
            training.run(on_step if world.is_main else ignore)
        finally:
            if (last := training.reported) is not None:
                records.hparams(experiment, last.best_value, last.best_epoch)
    world.barrier()
    return TrainResult(progress.best_value, progress.best_epoch, progress.epoch - first)


@dataclass
class _Training:
    """A trial under way."""

    engine: Engine
    state: TrialState
    progress: Progress
    splits: Mapping[Split, MomentDataset]
    records: Records
    writer: Writer
    report: Report
    stop: Callable[[], bool | Stop]
    pace: Pace
    decisions: Decisions | None
    unreported: EpochReport | None = None  # its checkpoint is being written
    reported: EpochReport | None = None  # the last one
    agreed: float = field(default_factory=time.monotonic)  # when the workers last agreed whether to save or stop
    span: int = 1  # steps from there to the next time
    left: int = 1  # steps until then

    def run(self, on_step: OnStep) -> None:
        """Trains to the last epoch."""
        world = self.state.world
        if world.is_main:
            for past in self.progress.history:
                self.reported = past
                self.report(past)
        self.engine.between_steps = self._between_steps
        while not self.progress.is_finished:
            epoch, within = self.progress.epoch + 1, self.progress.within
            totals = self.engine.run_epoch(self.splits["train"], epoch, on_step, within)
            self.progress.within = None
            done = self._evaluate(epoch, totals)
            self._report_saved()
            self.progress.history.append(done)
            self.state.remember_best(self.progress)
            is_saved, history = self.state.best is None, self.progress.history
            due = self.pace.due_before_report(time.monotonic(), history, self.decisions, is_saved)
            is_due, needs_best = world.gather(due)[0]
            if is_due:
                self._save()
            elif needs_best:
                self.writer.submit(self.state.prepare_save_best())
            self.unreported = done if world.is_main else None
            self._report_saved(_PROMPT)
            if not self.progress.is_finished:
                self._end_if(world.gather(self.stop())[0], is_due)
        self._report_saved()

    def _evaluate(self, epoch: int, totals: EpochTotals) -> EpochReport:
        """Evaluates on val, if `train.eval_every` demands it, and returns the epoch's report."""
        start = time.perf_counter()
        experiment, world = self.state.experiment, self.state.world
        settings, model, dataset = experiment.train, self.state.evaluated, self.splits["val"]
        with_loss = self.engine.schedule.reads_val_loss
        val: dict[str, float] = {}
        ious = torch.empty(0)
        if (epoch - 1) % settings.eval_every == 0 or epoch == settings.epochs:
            with memory_errors(f"while evaluating val after epoch {epoch}"):
                result = evaluate_split(
                    model, dataset, experiment.eval, world, self.engine.dtype, settings.eval_queries, with_loss
                )
            val, ious = result.metrics, result.ious
            if with_loss:
                self.engine.schedule.end_evaluation(result.loss)
        history = self.progress.history
        value = val[experiment.eval.metric] if val else history[-1].value
        improved = bool(val) and value > self.progress.best_value
        best_epoch = epoch if improved else self.progress.best_epoch
        epochs = epochs_in_all(epoch, best_epoch, settings)
        if world.is_main and (improved or epoch == epochs):
            drawn = draw(model, dataset, world.device, self.engine.dtype)
            self.records.pictures(epoch, drawn, captions(dataset))
        return EpochReport(
            epoch=epoch,
            epochs=epochs,
            loss=totals.loss,
            losses=totals.losses,
            learning_rate=self.engine.schedule.learning_rate,
            gradient_norm=totals.gradient_norm,
            samples_per_second=totals.queries / totals.seconds,
            train_seconds=totals.seconds,
            val_seconds=time.perf_counter() - start,
            val=val,
            value=value,
            best_value=value if improved else self.progress.best_value,
            best_epoch=best_epoch,
            peak_bytes=peak_bytes(world.device),
            steps=self.engine.schedule.steps,
            val_queries=len(ious),
            query_ious=pack_ious(ious) if len(ious) else "",
        )

    def _between_steps(self, _epoch: int, within: EpochState) -> None:
        self._report_saved(0)
        world = self.state.world
        self.left -= 1
        if world.size > 1 and self.left > 0:
            return
        now = time.monotonic()
        due = self.pace.is_due(now, within=True)
        span = round(_AGREE_SECONDS * self.span / max(now - self.agreed, 1e-9))
        stop, due, span = world.gather((self.stop(), due, min(max(1, span), _MOST_STEPS)))[0]
        self.agreed, self.span, self.left = now, span, span
        if due and not stop:
            self._save(within)
        self._end_if(stop, within=within)

    def _save(self, within: EpochState | None = None) -> None:
        """Copies the state and starts to write it in the background."""
        self._report_saved()
        self.engine.settle()
        began = time.monotonic()
        write = self.state.prepare_save(self.progress, within)

        def write_timed() -> None:
            write()
            now = time.monotonic()
            self.pace.wrote(now - began, now)

        self.pace.begins()
        self.writer.submit(write_timed)

    def _report_saved(self, seconds: float | None = None) -> None:
        """Reports the last epoch if its checkpoint is on disk; waits for that so long, or as long as it takes."""
        if self.writer.wait(seconds) and self.unreported is not None:
            done, self.unreported = self.unreported, None
            self.records.write(done)
            self.reported = done
            self.report(done)

    def _end_if(self, stop: bool | Stop, is_saved: bool = False, within: EpochState | None = None) -> None:
        """Ends the training if `stop` is set, with the state on disk unless it is to be discarded."""
        if stop and stop != Stop.DISCARD:
            if not is_saved:
                self._save(within)
            self._report_saved()
        if stop:
            raise KeyboardInterrupt


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seeds the generators that dropout and libraries draw from; each worker gets its own stream."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)  # noqa: NPY002 - libraries use it
    torch.manual_seed(seed + rank)


def _check_sizes(experiment: Experiment, splits: Mapping[Split, MomentDataset], world: World) -> None:
    train, of_videos = splits["train"], experiment.batch_of == "videos"
    samples = len(np.unique(train.videos)) if of_videos else len(train)
    for key, size in (("train.batch_size", experiment.train.batch_size), ("train split", samples)):
        if size < world.size:
            raise ConfigError(
                f"{key}={size}{' videos' if of_videos else ''} is smaller than the number of workers, {world.size}; "
                "use fewer workers"
            )


def _wrap(model: MomentModel, experiment: Experiment, world: World) -> torch.nn.Module:
    wrapped: torch.nn.Module = model
    if world.size > 1:
        ids = [world.device.index] if world.device.type == "cuda" else None
        # Batch statistics are the global batch's (model/norm.py): there are no buffers to broadcast. Gradients lie
        # where they are averaged: no second copy of them, which is as large as the weights.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its new name for broadcast_buffers is not yet in torch 2.6
            wrapped = DistributedDataParallel(
                model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )
    return compiled(wrapped) if experiment.train.compile else wrapped
