"""Imports weights of the published implementation as a run, which `evaluate` can measure."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from cdn_tune.config import Experiment, override
from cdn_tune.data.files import sha256
from cdn_tune.data.fingerprint import is_planted
from cdn_tune.data.mark import Mark
from cdn_tune.errors import CdnTuneError, CheckpointError, RunError
from cdn_tune.model.published import import_state
from cdn_tune.training.runs.checkpoint import BEST, build_model, save_checkpoint
from cdn_tune.training.runs.run_folder import EXPERIMENT, claim, describe_run, locked, read_manifest


def import_weights(path: Path, experiment: Experiment, run: Path) -> Experiment:
    """Writes a run folder whose best checkpoint holds published weights.

    Args:
        path: A ``.pkl`` or ``.pt`` file: the state by published name, bare or under ``model``; no code in it is run.
        experiment: Its model section must describe the published model.
        run: The folder to write.

    Returns:
        The experiment under the published behaviour, as the run holds it.

    Raises:
        CheckpointError: If the file cannot be read, or entries are missing, unknown, misshapen or not finite (named).
        ConfigError: If the experiment has a switch that the published model lacks.
        RunError: If the folder is in use or holds something else.
    """
    published = read_state(path)
    try:
        model = import_state(published, experiment.model, experiment.data)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: {error}; name the --experiment that they are of, this one has model.name={experiment.model.name}"
        ) from None
    data = experiment.plain()["data"]
    if not experiment.model.inputs.sequences:  # as those were trained; SnAG splits off punctuation
        data |= {"tokenizer": "legacy", "resampling": "legacy"}
    changed = {"model": model.config.model_dump(mode="json"), "data": data}
    imported = override({**experiment.plain(), **changed}, {}, str(path))
    with locked(run):
        source = {"name": path.name, "sha256": sha256(path)}
        if (run / BEST).exists() and read_manifest(run).get("imported_from") != source:
            raise RunError(f"{run}: holds another checkpoint; choose another --out folder")
        manifest = {**describe_run("train", imported, {}), "imported_from": source}
        claim(run, manifest, {EXPERIMENT: imported.plain()})
        given = model.state_dict()  # which buffers are saved is a matter of the loss section
        state = {name: given.get(name, value) for name, value in build_model(imported).state_dict().items()}
        content = {"model": state, "epoch": 0, "val": {}, "planted": _planted(imported)}
        save_checkpoint(run / BEST, imported, content)
    return imported


def read_state(path: Path) -> dict[str, Any]:
    """Reads a published checkpoint's tensors by name.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds anything but plain tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about older pickles
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        unsafe = "Weights only" in str(error)
        reason = "it holds more than tensors" if unsafe else "it is damaged, or no checkpoint"
        raise CheckpointError(
            f"{path}: cannot be read as plain tensors ({reason}); save its state_dict with torch.save, and import that"
        ) from None
    state = content.get("model", content) if isinstance(content, dict) else content
    tensors = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    )
    if not tensors:
        raise CheckpointError(
            f"{path}: holds no state: a mapping of names to tensors, bare or under 'model', is expected"
        )
    found: dict[str, Any] = state
    return found


def _planted(experiment: Experiment) -> Mark:
    """Returns whether the experiment's data are planted; weights may be imported without data."""
    try:
        return is_planted(experiment.data)
    except CdnTuneError:
        return False
