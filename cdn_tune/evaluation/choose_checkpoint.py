"""Which checkpoints a run's evaluation uses: the best on val that can be read, or those that are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdn_tune.errors import CheckpointError, RunError
from cdn_tune.training.runs.checkpoint import BEST, Checkpoint, load_checkpoint
from cdn_tune.training.runs.kept import CHECKPOINT, KEPT, kept_folder, recorded_value
from cdn_tune.training.runs.run_folder import read_manifest


@dataclass(frozen=True)
class Choice:
    """The chosen checkpoint, and what was wrong with those that would have come before it."""

    checkpoint: Checkpoint
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class Choices:
    """Some chosen checkpoints, best on val first, and what was wrong with others."""

    checkpoints: tuple[Checkpoint, ...]
    damaged: tuple[str, ...]


def choose_best(run: Path) -> Choice:
    """Loads a run's best checkpoint by its val metric; a damaged one gives way to the next.

    Args:
        run: Folder of a train or search run.

    Raises:
        RunError: If the folder is no run, or has no checkpoint yet.
        CheckpointError: If every checkpoint is damaged.
    """
    choices = choose_models(run)
    return Choice(choices.checkpoints[0], choices.damaged)


def choose_models(run: Path, top: int = 1, file: Path | None = None, trials: Sequence[int] | None = None) -> Choices:
    """Loads a run's best checkpoints by their val metric; damaged ones give way to the next.

    Args:
        run: Folder of a train or search run.
        top: How many; fewer if no more are kept.
        file: This checkpoint instead.
        trials: Those of these trials instead, all that are kept (the Pareto front).

    Raises:
        RunError: If the folder is no run, has no checkpoint yet, or kept none of the trials.
        CheckpointError: If the named checkpoint, or every one, is damaged or missing.
    """
    manifest = read_manifest(run)
    if file is not None:
        if not file.is_file():
            raise CheckpointError(f"--checkpoint {file}: no such file; name a checkpoint.pt or best.pt")
        return Choices((load_checkpoint(file),), ())
    damaged: list[str] = []
    if trials is None:
        paths = [run / BEST] if manifest["kind"] == "train" else sorted((run / KEPT).glob(f"*/{CHECKPOINT}"))
        paths = [path for path in paths if path.exists()]
        if not paths:
            raise RunError(f"{run}: has no checkpoint of a finished epoch yet; let its train or search run on")
    else:
        folders = [kept_folder(run, number) for number in trials]
        paths = [folder / CHECKPOINT for folder in folders if (folder / CHECKPOINT).exists()]
        damaged = [f"{folder}: its checkpoint was not kept" for folder in folders if folder / CHECKPOINT not in paths]
        if not paths:
            raise RunError(f"{run}: keeps no checkpoint of the Pareto front; search with a larger keep")
        top = len(paths)
    kept: list[Checkpoint] = []
    for path in paths:
        try:
            kept.append(load_checkpoint(path))
        except CheckpointError as error:
            damaged.append(str(error))
        # Of equals the earlier; no more models in memory than are asked for.
        kept = sorted(kept, key=_rank)[:top]
    if not kept:
        raise CheckpointError("\n".join(damaged))
    return Choices(tuple(kept), tuple(damaged))


def _rank(checkpoint: Checkpoint) -> float:
    """What the study says counts, highest first; a stopped trial's last epoch, which it never heard of, does not."""
    recorded = recorded_value(checkpoint.path.parent)
    value = checkpoint.value if recorded is None else recorded
    return 1.0 if value is None else -value
