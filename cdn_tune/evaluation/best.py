"""Which checkpoint a run's evaluation uses: the best on val that can be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cdn_tune.errors import CheckpointError, RunError
from cdn_tune.training.checkpoint import Checkpoint, load_checkpoint
from cdn_tune.training.kept import CHECKPOINT, KEPT, recorded_value
from cdn_tune.training.loop import BEST
from cdn_tune.training.run_folder import read_manifest


@dataclass(frozen=True)
class Choice:
    """The chosen checkpoint, and what was wrong with those that would have come before it."""

    checkpoint: Checkpoint
    damaged: tuple[str, ...]


def choose_best(run: Path) -> Choice:
    """Loads a run's best checkpoint by its val metric; a damaged one gives way to the next.

    Args:
        run: Folder of a train or search run.

    Raises:
        RunError: If the folder is no run, or has no checkpoint yet.
        CheckpointError: If every checkpoint is damaged.
    """
    is_trial = read_manifest(run)["kind"] == "train"
    paths = [run / BEST] if is_trial else sorted((run / KEPT).glob(f"*/{CHECKPOINT}"))
    paths = [path for path in paths if path.exists()]
    if not paths:
        raise RunError(f"{run}: has no checkpoint of a finished epoch yet; let its train or search run on")
    checkpoints: list[Checkpoint] = []
    damaged: list[str] = []
    for path in paths:
        try:
            checkpoints.append(load_checkpoint(path))
        except CheckpointError as error:
            damaged.append(str(error))
    if not checkpoints:
        raise CheckpointError("\n".join(damaged))
    return Choice(max(checkpoints, key=_rank), tuple(damaged))


def _rank(checkpoint: Checkpoint) -> float:
    """What the study says counts; a stopped trial's last epoch, which it never heard of, does not."""
    recorded = recorded_value(checkpoint.path.parent)
    return (checkpoint.value or 0.0) if recorded is None else recorded
