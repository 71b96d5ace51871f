"""Which checkpoints are used: the best of a run on val that can be read, the named ones, or that of a path."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdn_tune.errors import CheckpointError, RunError
from cdn_tune.training.object_store.sync import fetched, fetched_file
from cdn_tune.training.runs.checkpoint import BEST, Checkpoint, load_checkpoint
from cdn_tune.training.runs.kept import CHECKPOINT, KEPT, kept_folder, recorded_value
from cdn_tune.training.runs.run_folder import MANIFEST, read_manifest


@dataclass(frozen=True)
class Choice:
    """The chosen checkpoints, best on val first, and what was wrong with those that would have come before them."""

    checkpoints: tuple[Checkpoint, ...]
    damaged: tuple[str, ...] = ()

    @property
    def checkpoint(self) -> Checkpoint:
        """The best one."""
        return self.checkpoints[0]


def choose_best(run: Path, top: int = 1, file: Path | None = None, trials: Sequence[int] | None = None) -> Choice:
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
        return Choice((load_checkpoint(file),))
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
        kept = sorted(kept, key=_rank)[:top]  # of equals the earlier; no more models in memory than needed
    if not kept:
        raise CheckpointError("\n".join(damaged))
    return Choice(tuple(kept), tuple(damaged))


def _rank(checkpoint: Checkpoint) -> float:
    """Returns minus the value in the study, which has none of a stopped trial's last epoch; else the checkpoint's."""
    recorded = recorded_value(checkpoint.path.parent)
    value = checkpoint.value if recorded is None else recorded
    return 1.0 if value is None else -value


def choose_checkpoint(path: Path) -> Choice:
    """Returns the checkpoint of a run folder (its best), a kept checkpoint's folder, or a checkpoint file.

    Raises:
        RunError: If it is none of these, or has no checkpoint yet.
        CheckpointError: If its checkpoints are damaged.
    """
    if path.is_file():
        return Choice((load_checkpoint(path),))
    if not path.is_dir():
        raise RunError(f"{path}: no such run, checkpoint or exported folder")
    if (path / MANIFEST).exists():
        return choose_best(path)
    for name in (CHECKPOINT, BEST):
        if (path / name).is_file():
            return Choice((load_checkpoint(path / name),))
    raise RunError(
        f"{path}: is no run folder ({MANIFEST}), kept checkpoint ({CHECKPOINT}) or exported folder (config.json)"
        "; name one of these"
    )


def fetch_model(url: str | Path) -> Path:
    """Fetches a run, a kept checkpoint's folder, an exported folder or a checkpoint file from an object store.

    Raises:
        CdnTuneError: If it is a wrong URL, the store cannot be reached, or nothing lies there.
    """
    folder = fetched(url, models=True)
    return folder if folder.is_dir() and any(folder.iterdir()) else fetched_file(url)
