"""Opens the data of an experiment and trains it; a warm process opens the same data once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import torch

from cdn_tune.config import DataConfig, Experiment
from cdn_tune.data.annotations import Split
from cdn_tune.data.dataset import MomentDataset, load_splits
from cdn_tune.data.fingerprint import is_planted
from cdn_tune.training.loop import TrainResult, never, train
from cdn_tune.training.report import OnStep, Report, ignore


@lru_cache(maxsize=2)
def open_data(config: DataConfig) -> Mapping[Split, MomentDataset]:
    """Opens the train and val splits; the trials that follow in this process share them.

    Raises:
        DataError: If the data cannot be used.
    """
    return load_splits(config, ("train", "val"))


def train_in(
    experiment: Experiment,
    folder: Path,
    report: Report,
    on_step: OnStep = ignore,
    threads: int | None = None,
    stop: Callable[[], bool] = never,
) -> TrainResult:
    """Trains an experiment in a folder; called on every worker of the trial.

    Args:
        experiment: What to train.
        folder: The trial's folder.
        report: Called by worker 0 after every epoch.
        on_step: Called by worker 0 after every step.
        threads: CPU threads of this worker; torch's choice if None.
        stop: Asked after every step; see `loop.train`.

    Raises:
        CdnTuneError: If the data, the folder's checkpoint or the training is at fault.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    return train(experiment, folder, report, open_data(experiment.data), on_step, is_planted(experiment.data), stop)
