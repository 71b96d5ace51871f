"""Which checkpoints are used: the best of a run on val that can be read, the named ones, or that of a path."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdn_tune.config import DATA_PATHS, Experiment, build
from cdn_tune.config.check import COMPARED
from cdn_tune.config.keys import flatten
from cdn_tune.errors import CdnTuneError, CheckpointError, ConfigError, RunError
from cdn_tune.training.object_store.sync import fetched, fetched_file
from cdn_tune.training.runs.checkpoint import BEST, Checkpoint, load_checkpoint
from cdn_tune.training.runs.kept import CHECKPOINT, KEPT, kept_folder, recorded_value
from cdn_tune.training.runs.run_folder import MANIFEST, first_difference, read_manifest


@dataclass(frozen=True)
class Choice:
    """The chosen checkpoints, best on val first.

    Attributes:
        checkpoints: They, at least one.
        damaged: What is wrong with those that would have come before them, one line each, that of the best first.
        is_best: Whether the first is the best there was: no better one is missing or damaged.
        confirmed: What a search's confirmations say of its best trial: ``trial``, ``seeds``, ``mean`` of the val
            metric and its ``interval``; None if there are none.
    """

    checkpoints: tuple[Checkpoint, ...]
    damaged: tuple[str, ...] = ()
    is_best: bool = True
    confirmed: dict[str, Any] | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        """The best one."""
        return self.checkpoints[0]


def choose_best(run: Path, top: int = 1, file: Path | None = None, trials: Sequence[int] | None = None) -> Choice:
    """Loads a run's best checkpoints by their val metric; missing and damaged ones give way to the next.

    Which trial of a search is the best, its study says, where that lies in the run folder; of a confirmed one, the
    checkpoint is that of its best confirmation.

    Args:
        run: Folder of a train or search run.
        top: How many; fewer if no more are kept.
        file: This checkpoint instead.
        trials: Those of these trials instead, all that are kept (the Pareto front).

    Raises:
        RunError: If the folder is no run, has no checkpoint yet, or kept none of the trials.
        CheckpointError: If the named checkpoint, or every one, is damaged or missing; or if it is of another run.
    """
    manifest = read_manifest(run)
    if file is not None:
        if not file.is_file():
            raise CheckpointError(f"--checkpoint {file}: no such file; name a checkpoint.pt or best.pt")
        checkpoint = load_checkpoint(file)
        _check_of_run(checkpoint, run, manifest)
        return Choice((checkpoint,))
    notes: list[str] = []
    confirmed: dict[str, Any] | None = None
    if trials is not None:
        paths = [kept_folder(run, number) / CHECKPOINT for number in trials]
        order, top = paths[:1], len(paths)
    elif manifest["kind"] == "train":
        order = paths = [run / BEST]
    else:
        paths = sorted((run / KEPT).glob(f"*/{CHECKPOINT}"))
        order, notes, confirmed = _order_of_study(run)
        paths = [*(path for path in order[:1] if path not in paths), *paths]
    places = {path: place for place, path in enumerate(order)}
    best = order[0] if order else None
    if not any(path.exists() for path in paths):
        if trials is not None:
            raise RunError(f"{run}: keeps no checkpoint of the Pareto front; search with a larger keep")
        raise RunError(f"{run}: has no checkpoint of a finished epoch yet; let its train or search run on")
    kept: list[Checkpoint] = []
    faults: dict[Path, str] = {}
    for path in paths:
        try:
            if not path.exists():
                raise CheckpointError(f"{path.parent}: its checkpoint was not kept, or is gone")
            kept.append(load_checkpoint(path))
        except CheckpointError as error:
            faults[path] = str(error)
        # Of equals the earlier; no more models in memory than needed.
        kept = sorted(kept, key=lambda each: (places.get(each.path, len(places)), _rank(each)))[:top]
    damaged = (*(faults[path] for path in sorted(faults, key=lambda path: path != best)), *notes)
    if not kept:
        raise CheckpointError("\n".join(damaged))
    return Choice(tuple(kept), damaged, best not in faults if best else not faults, confirmed)


def _check_of_run(checkpoint: Checkpoint, run: Path, manifest: Mapping[str, Any]) -> None:
    """Raises a `CheckpointError` if a checkpoint's experiment is none of the run's: its result would be another's."""
    try:
        held = build(Experiment, manifest["experiment"], str(run / MANIFEST)).plain()
    except (ConfigError, KeyError, TypeError):  # a manifest of another version, or damaged
        return
    common = COMPARED if manifest["kind"] == "search" else ""
    there, here = (
        {key: value for key, value in flatten(values).items() if key.startswith(common)}
        for values in (held, checkpoint.experiment.plain())
    )
    if difference := first_difference(there, here, (*DATA_PATHS, "seed", "train.epochs")):
        raise CheckpointError(
            f"--checkpoint {checkpoint.path}: is of another run than {run} ({difference}); evaluate it in its own"
        )


def _rank(checkpoint: Checkpoint) -> float:
    """Returns minus the value in the study, which has none of a stopped trial's last epoch; else the checkpoint's."""
    recorded = recorded_value(checkpoint.path.parent)
    value = checkpoint.value if recorded is None else recorded
    return 1.0 if value is None else -value


def _order_of_study(run: Path) -> tuple[list[Path], list[str], dict[str, Any] | None]:
    """Returns where the checkpoints of a search's trials belong, best first by its study.

    With them, lines for the user, such as why there are none; and what confirms the best one.
    """
    from cdn_tune.tuning.results.record import read_record  # Optuna takes its time to import
    from cdn_tune.tuning.study.ranking import confirmed, models, ranking, seed_of

    try:
        record = read_record(run)
    except CdnTuneError as error:
        why = str(error)
    else:
        if ranked := ranking(record.entries):
            paths = [kept_folder(run, trial.number) / CHECKPOINT for trial in models(record.entries)]
            notes = [] if record.notice is None else [record.notice]
            found = confirmed(record.entries).get(ranked[0].number)
            if found is None:
                return paths, notes, None
            seeds = [seed_of(each) for each in found.runs]
            interval = None if found.interval is None else list(found.interval)
            facts = {"trial": ranked[0].number, "seeds": seeds, "mean": found.mean, "interval": interval}
            return paths, notes, facts
        why = "no trial in it has ended with a value"
    return [], [f"{run}: its study does not say which trial is the best ({why}); that of {KEPT}/ is taken"], None


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
