"""How large a trial's model and checkpoints are, computed from the experiment alone."""

from __future__ import annotations

from pathlib import Path

import torch

from cdn_tune.config import Experiment
from cdn_tune.model.family import MomentModel
from cdn_tune.training.state import LAST


def model_without_memory(experiment: Experiment) -> MomentModel:
    """Returns the experiment's model on the meta device: shapes without values."""
    with torch.device("meta"):
        return experiment.model.build(experiment.data, experiment.loss)


def count_parameters(experiment: Experiment) -> int:
    """Returns the number of parameters of the experiment's model."""
    return sum(parameter.numel() for parameter in model_without_memory(experiment).parameters())


def occupied_bytes(folder: Path) -> int:
    """Returns the bytes that a trial's checkpoints occupy on disk now."""
    return sum(path.stat().st_size for path in (folder / LAST).parent.glob("*.pt"))


def checkpoint_bytes(experiment: Experiment) -> int:
    """Returns the most bytes that a trial's checkpoints occupy on disk: the best, the last two, one being written."""
    model = model_without_memory(experiment)
    trained = sum(parameter.nbytes for parameter in model.parameters())
    weights = trained + sum(buffer.nbytes for buffer in model.buffers())
    last = weights + 2 * trained + (weights if experiment.train.ema else 0)  # Adam's moments, the running mean
    return weights + 3 * last
