"""How many queries a worker computes at once."""

from __future__ import annotations

import torch

from cdn_tune.config import Experiment
from cdn_tune.data.dataset import MomentDataset
from cdn_tune.model.family import MomentModel
from cdn_tune.training.memory.device import available_bytes, fit_micro_batch
from cdn_tune.training.memory.estimate import estimate
from cdn_tune.training.step.batch_loss import batch_loss
from cdn_tune.training.step.process_group import World


def choose_micro_batch(
    experiment: Experiment, model: MomentModel, dataset: MomentDataset, world: World, dtype: torch.dtype
) -> int | None:
    """Returns `train.micro_batch`, or for `auto` the largest that fits; None for a worker's whole share of a batch.

    On one GPU the choice is tried. Several workers choose by the estimate alone, because they normalise together and
    could not fail one by one; a CPU does not tell of a lack of memory before it is too late.

    Args:
        experiment: The trial.
        model: Its model, on its device; weights, statistics and random numbers are left as they are.
        dataset: The train split.
        world: The trial's workers.
        dtype: Format of the forward pass.

    Raises:
        MemoryShortage: If not even one query fits.
    """
    chosen = experiment.train.micro_batch
    if chosen != "auto":
        return chosen
    share = -(-min(experiment.train.batch_size, len(dataset)) // world.size)

    def attempt(size: int) -> None:
        if world.device.type == "cuda" and world.size == 1:
            _try(model, dataset, world, dtype, size)

    free = available_bytes(world.device) // (1 if world.device.type == "cuda" else world.size)
    if all(world.gather(_fits_easily(experiment, model, share, free, dtype, world.device))):
        return None
    need = estimate(experiment, dtype, world.device)
    held = need.weights + need.ema  # the model is there already
    size = min(world.gather(fit_micro_batch(share, need, free + held, attempt)))
    return None if size >= share else size


def _fits_easily(
    experiment: Experiment, model: MomentModel, queries: int, free: int, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether memory is plenty by a bound so generous that nothing need be estimated, which takes a while."""
    need = model.memory(experiment.data.frames, experiment.train.batch_size, dtype, device)
    weights = 6 * 4 * sum(weight.numel() for weight in model.parameters())
    return need is not None and weights + queries * need.bound < free // 4


def _try(model: MomentModel, dataset: MomentDataset, world: World, dtype: torch.dtype, size: int) -> None:
    """Computes a loss and its gradient, and leaves no trace of it."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batch = dataset.batch(range(size)).to(world.device)
    try:
        with torch.random.fork_rng(devices=[world.device]):
            torch.autograd.backward(batch_loss(model.train(), batch, dtype)[0])
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        torch.cuda.empty_cache()
