"""One epoch of optimisation: batches in, gradients clipped, weights moved."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from cdn_tune.config import Experiment
from cdn_tune.data.batches import Indices, epoch_batches, prefetch, shard
from cdn_tune.data.dataset import Batch, MomentDataset
from cdn_tune.errors import TrainingError
from cdn_tune.model.finite import explain_nonfinite
from cdn_tune.model.loss import attention_loss, moment_loss
from cdn_tune.moments.temporal_map import iou_maps
from cdn_tune.training.optimiser import Schedule
from cdn_tune.training.precision import autocast
from cdn_tune.training.report import OnStep, StepReport
from cdn_tune.training.world import World


@dataclass(frozen=True)
class EpochTotals:
    """Means over an epoch's queries (gradient norm: over its steps), and its duration."""

    loss: float
    moment_loss: float
    attention_loss: float
    gradient_norm: float
    queries: int
    seconds: float


@dataclass
class Engine:
    """What moves the weights of one trial, on one of its workers.

    Attributes:
        experiment: The trial.
        model: The model, possibly wrapped for several workers.
        optimiser: Its optimiser.
        schedule: Its learning rate.
        world: The trial's workers.
        dtype: Format of the forward pass.
    """

    experiment: Experiment
    model: nn.Module
    optimiser: Optimizer
    schedule: Schedule
    world: World
    dtype: torch.dtype

    def run_epoch(self, dataset: MomentDataset, epoch: int, on_step: OnStep) -> EpochTotals:
        """Trains one epoch.

        Args:
            dataset: The train split.
            epoch: Number of the epoch, from 1; with the seed it determines the order.
            on_step: Called after every optimiser step.

        Raises:
            TrainingError: If the loss or the gradient is not finite.
        """
        start = time.perf_counter()
        batches = global_batches(len(dataset), self.experiment, epoch, self.world)
        mine = [shard(batch, self.world.rank, self.world.size) for batch in batches]
        # loss, moment loss, attention loss (sums over this worker's queries), queries
        sums = torch.zeros(4, dtype=torch.float64)
        norms = 0.0
        self.model.train()
        with closing(prefetch(dataset, mine, pin=self.world.device.type == "cuda")) as loader:
            for step, (whole, batch) in enumerate(zip(batches, loader, strict=True), start=1):
                share = len(batch.indices) / len(whole)
                parts, norm = self._step(batch, share * self.world.size)
                if not (math.isfinite(norm) and bool(parts.isfinite().all())):
                    raise TrainingError(self._not_finite(dataset, batch, epoch, step, parts, norm))
                sums += torch.cat([parts * len(batch.indices), torch.tensor([len(batch.indices)])])
                norms += norm
                on_step(StepReport(epoch, step, len(batches), float(parts[0])))
        sums = self.world.sum(sums.to(self.world.device)).cpu()
        loss, moment, attention = (sums[:3] / sums[3]).tolist()
        self.schedule.end_epoch(loss)
        seconds = time.perf_counter() - start
        return EpochTotals(loss, moment, attention, norms / len(batches), int(sums[3]), seconds)

    def _step(self, batch: Batch, weight: float) -> tuple[torch.Tensor, float]:
        """Makes one optimiser step.

        Args:
            batch: This worker's share of the global batch.
            weight: What its mean loss counts, relative to the mean over workers.

        Returns:
            Loss, moment loss and attention loss [3] in float64 on the CPU, and the gradient norm before clipping.
        """
        loss_config = self.experiment.loss
        batch = batch.to(self.world.device)
        targets = iou_maps(batch.durations, batch.moments, self.experiment.model.clips)  # [B, S, S]
        with autocast(self.world.device, self.dtype):
            output = self.model(batch.visual, batch.words, batch.word_mask)
        moment = moment_loss(
            output.logits.float(), targets.float(), output.mask, loss_config.min_iou, loss_config.max_iou
        )
        if output.attention is None:
            attention = moment.new_zeros(())
        else:
            attention = attention_loss(output.attention.float(), loss_config.attention_lambda)
        loss = moment + loss_config.attention_beta * attention
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss * weight)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.experiment.optim.clip_norm)
        if bool(norm.isfinite()):
            self.optimiser.step()
            self.schedule.step()
        return torch.stack([loss, moment, attention]).detach().double().cpu(), float(norm)

    def _not_finite(
        self, dataset: MomentDataset, batch: Batch, epoch: int, step: int, parts: torch.Tensor, norm: float
    ) -> str:
        ids = [dataset.annotations[index].id for index in batch.indices.tolist()]
        model = getattr(self.model, "module", self.model)
        cause = explain_nonfinite(model, batch.visual, batch.words, ids)
        shown = ", ".join(ids[:8]) + (f", ... ({len(ids)} in all)" if len(ids) > 8 else "")
        what = f"loss {float(parts[0])}" if not math.isfinite(float(parts[0])) else f"gradient norm {norm}"
        return (
            f"{what} at epoch {epoch}, step {step}, learning rate {self.schedule.learning_rate:.3g}; "
            f"batch {shown}; {f'{cause}; ' if cause else ''}lower optim.lr, or look at these features"
        )


def global_batches(size: int, experiment: Experiment, epoch: int, world: World) -> list[Indices]:
    """Returns the epoch's batches over all workers; order depends on seed and epoch only.

    A last batch with fewer queries than workers is left out, since every worker takes part in every step.
    """
    batches = epoch_batches(size, experiment.train.batch_size, experiment.seed, epoch)
    return [batch for batch in batches if len(batch) >= world.size]
