"""The kept checkpoints: across all trials, the best few; the weights of the others go as soon as they have lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config.yaml import dump
from cdn_tune.data.files import sync_folder
from cdn_tune.training.checkpoint import read_checkpoint
from cdn_tune.training.files import write_text
from cdn_tune.training.loop import BEST
from cdn_tune.training.run_folder import EXPERIMENT
from cdn_tune.tuning.ranking import ranking
from cdn_tune.tuning.trial import trial_folder

KEPT = "best"
CHECKPOINT = "checkpoint.pt"


def keep_best(run: Path, trials: list[FrozenTrial], keep: int) -> list[Path]:
    """Brings ``best/`` and the trials' checkpoints in line with the study.

    A winner's checkpoint is linked before anything is deleted, so the best is on disk whenever the process dies; the
    next call tidies what a crash left.

    Args:
        run: The run folder.
        trials: All trials of the study.
        keep: How many trials keep their best checkpoint.

    Returns:
        The kept checkpoints, best first.
    """
    kept: list[Path] = []
    for trial in ranking(trials):
        folder = run / KEPT / f"trial-{trial.number:04d}"
        source = trial_folder(run, trial.number) / BEST
        if (folder / CHECKPOINT).exists() or _link(source, folder):
            kept.append(folder / CHECKPOINT)
        if len(kept) == keep:
            break
    chosen = {path.parent for path in kept}
    for folder in (run / KEPT).glob("trial-*"):
        if folder not in chosen:
            shutil.rmtree(folder, ignore_errors=True)
    for trial in trials:
        if trial.state not in (TrialState.RUNNING, TrialState.WAITING):
            shutil.rmtree((trial_folder(run, trial.number) / BEST).parent, ignore_errors=True)
    return kept


def _link(source: Path, folder: Path) -> bool:
    """Makes `folder` hold the checkpoint `source` and its experiment; False if there is none."""
    if not source.exists():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / EXPERIMENT, dump(read_checkpoint(source)["experiment"]))
    temporary = folder / f".{CHECKPOINT}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, temporary)
    temporary.replace(folder / CHECKPOINT)
    sync_folder(folder)
    return True
