"""Training the winner again, under other seeds or another protocol: trial folders in the run, that go on if stopped."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cdn_tune.config import DATA_PATHS, Experiment, build, override
from cdn_tune.config.yaml import dump, read_mapping
from cdn_tune.data.annotations import Split
from cdn_tune.data.dataset import MomentDataset, load_splits
from cdn_tune.data.files import read_json
from cdn_tune.data.fingerprint import is_planted
from cdn_tune.data.layouts import layout_of, root_of
from cdn_tune.errors import CheckpointError, RunError, TrainingError
from cdn_tune.evaluation.scoring import Workers
from cdn_tune.training.loop import train
from cdn_tune.training.reports import Decisions, EpochReport
from cdn_tune.training.runs.checkpoint import BEST, LAST, PREVIOUS, read_checkpoint, save_checkpoint
from cdn_tune.training.runs.files import write_json, write_text
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.training.runs.run_folder import EXPERIMENT, changed_files, first_difference
from cdn_tune.training.step.threads import threads_for, torch_threads
from cdn_tune.training.train_trial import open_data

Mode = Literal["train", "train+val", "published"]

FINAL = Path("checkpoint.pt")
DATA = "data.json"  # the fingerprint of the data that a trial was trained on
_FOLDERS = {"train": "seeds/{seed}", "train+val": "seeds/{seed}-train+val", "published": "published/{seed}"}


class Retrained(NamedTuple):
    """One trial that was trained again."""

    seed: int
    folder: Path
    experiment: Experiment
    checkpoint: Path  # the file to measure
    trained_on: str  # ``train`` or ``train+val``


def retrain(
    run: Path,
    winner: Experiment,
    data: dict[str, Any],
    seeds: list[int],
    mode: Mode,
    epochs: int,
    workers: Workers,
    on_done: Callable[[int, int], object],
) -> list[Retrained]:
    """Trains the winner under other seeds, several at a time; what was finished before is not run again.

    Args:
        run: The locked run folder.
        winner: Its experiment, with its data where they are now.
        data: Fingerprint of these data.
        seeds: Under which it is trained.
        mode: ``train``: on train, the epoch chosen on val, for each seed. ``train+val``: on both, for `epochs`.
            ``published``: as the published code does it, the epoch chosen on test; on train, or, where val is carved
            from the training file, on all of that.
        epochs: Of ``train+val``: those that the winner took on val.
        workers: Who trains; one worker trains one trial.
        on_done: Called with (trials done, trials in all).

    Raises:
        RunError: If a folder holds another trial.
        CdnTuneError: If data, training or cluster is at fault.
    """
    trials = []
    both = mode == "train+val" or (mode == "published" and carves_val(winner))
    changes: dict[Mode, dict[str, Any]] = {
        "train": {},
        "train+val": {"train.patience": 0},  # nothing is left to choose with
        "published": {"train.eval_every": 1, "train.eval_queries": None},
    }
    for seed in seeds:
        experiment = override(winner.plain(), {"seed": seed, **changes[mode]}, f"seed {seed}")
        folder = run / _FOLDERS[mode].format(seed=seed)
        file = folder / (FINAL if mode == "train+val" else BEST)
        trials.append(Retrained(seed, folder, experiment, file, "train+val" if both else "train"))
    for trial in trials:
        _claim(trial, data)
    unfinished = [trial for trial in trials if not _is_finished(trial.folder, mode)]
    inputs = [(trial.experiment.plain(), str(trial.folder), mode, epochs) for trial in unfinished]
    done = len(trials) - len(unfinished)
    on_done(done, len(trials))
    for count, _ in enumerate(workers.run(train_again, inputs), start=done + 1):
        on_done(count, len(trials))
    return trials


class _Enough(Exception):  # noqa: N818 - no error
    """The epoch that was chosen on val is reached."""


def train_again(experiment: dict[str, Any], folder: str, mode: Mode, epochs: int) -> None:
    """Trains one trial, or goes on with it; module-level, so that it pickles."""
    settings, path = build(Experiment, experiment, folder), Path(folder)
    splits = _splits(settings, mode)

    def report(done: EpochReport) -> None:
        if mode == "train+val" and done.epoch >= epochs:
            raise _Enough

    # Its state is on disk before the report that ends it.
    last = Decisions(first=epochs, pauses=True) if mode == "train+val" else None
    try:
        with torch_threads(threads_for(settings)):
            train(settings, path, report, splits, planted=is_planted(settings.data), decisions=last)
    except _Enough:
        _keep_last(settings, path, epochs)
    if mode == "train+val":
        if not (path / FINAL).exists():
            raise TrainingError(f"{path}: ended before epoch {epochs}, chosen on val; delete it and start again")
        shutil.rmtree((path / LAST).parent, ignore_errors=True)
    for name in (LAST, PREVIOUS):  # three times the size of the model that is kept
        (path / name).unlink(missing_ok=True)


def carves_val(experiment: Experiment) -> bool:
    """Returns whether the dataset has no val files of its own, so that val is a part of its training file."""
    return not layout_of(experiment.data.dataset).files(root_of(experiment.data), "val")


def _splits(experiment: Experiment, mode: Mode) -> Mapping[Split, MomentDataset]:
    if mode == "train":
        return open_data(experiment.data, experiment.model.inputs.sequences)
    wanted: tuple[Split, ...] = ("train", "val") if mode == "train+val" else ("train", "val", "test")
    loaded = load_splits(experiment.data, wanted, sequences=experiment.model.inputs.sequences)
    first, second = loaded["train"], loaded["val"]
    whole = type(first)(
        first.annotations + second.annotations, first.skipped + second.skipped, first.vocabulary, first.features
    )
    if mode == "train+val":
        return {"train": whole, "val": second}  # val is watched, and chooses nothing
    return {"train": whole if carves_val(experiment) else first, "val": loaded["test"]}


def _claim(trial: Retrained, data: dict[str, Any]) -> None:
    path, facts = trial.folder / EXPERIMENT, trial.folder / DATA
    if not path.exists():
        write_json(facts, data)
        write_text(path, dump(trial.experiment.plain()))
        return
    held = build(Experiment, read_mapping(path), str(path))
    beside = DATA_PATHS if facts.exists() else ()
    difference = first_difference(held.plain(), trial.experiment.plain(), beside)
    if difference is None and beside and (changed := changed_files(_read_facts(facts), data)):
        difference = f"it is of other data: {', '.join(changed)}"
    if difference is not None:
        raise RunError(f"{trial.folder}: holds another trial ({difference}); move or delete that folder")


def _read_facts(path: Path) -> dict[str, Any]:
    """Returns the fingerprint of the data that a trial was trained on.

    Raises:
        RunError: If the file is damaged.
    """
    try:
        facts: dict[str, Any] = read_json(path)
        changed_files(facts, facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"{path}: cannot be read; move or delete the folder {path.parent}") from None
    return facts


def _is_finished(folder: Path, mode: Mode) -> bool:
    if mode == "train+val":
        return (folder / FINAL).exists()
    epochs = read_metrics(folder)
    return bool(epochs) and (folder / BEST).exists() and epochs[-1]["epoch"] >= epochs[-1]["epochs"]


def _keep_last(experiment: Experiment, folder: Path, epochs: int) -> None:
    """Makes the weights after the last epoch the trial's checkpoint."""
    content = read_checkpoint(folder / LAST)
    if len(content["history"]) != epochs or content["within"] is not None:
        shutil.rmtree((folder / LAST).parent, ignore_errors=True)
        raise CheckpointError(f"{folder}: was stopped just past epoch {epochs}; the same command trains it again")
    weights = content["model"] if content["ema"] is None else content["ema"][0]
    kept = {"model": weights, "epoch": epochs, "val": {}, "planted": is_planted(experiment.data)}
    save_checkpoint(folder / FINAL, experiment, kept)
