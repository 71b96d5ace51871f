"""Checkpoints: plain tensors and values, loaded without running code; each rebuilds its own model."""

import hashlib
import math
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cdn_tune import __version__
from cdn_tune.config import Experiment, build
from cdn_tune.config.yaml import beginning
from cdn_tune.data.files import brief
from cdn_tune.data.mark import Mark, is_mark
from cdn_tune.errors import CheckpointError, ConfigError
from cdn_tune.model.family import MomentModel
from cdn_tune.training.runs.files import write_atomic

LAST = Path("checkpoints/last.pt")  # in a trial's folder
PREVIOUS = Path("checkpoints/previous.pt")
BEST = Path("checkpoints/best.pt")
START = Path("start.pt")  # in a run's folder: the weights that it starts from, if not untrained ones
FORMAT = 1
DIGEST = "sha256"
_ANOTHER = "delete it, or use another one"


@dataclass(frozen=True)
class Checkpoint:
    """A kept model."""

    path: Path  # where it was read from
    experiment: Experiment  # the experiment that produced it
    model: MomentModel  # the rebuilt model, in eval mode, on the CPU
    epoch: int  # after which epoch it was saved, from 1
    val: dict[str, float]  # its metrics on the val split
    planted: Mark  # whether it was trained on planted data
    kernels: Any = None  # how a GPU multiplied in its dynamic layers, as `training.kernels.choose` reads it

    @property
    def value(self) -> float | None:
        """The val metric that chose it; None if it was imported and never measured on val."""
        return self.val.get(self.experiment.eval.metric)


def build_model(experiment: Experiment) -> MomentModel:
    """Builds the experiment's untrained model; its weights follow from the experiment's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        return experiment.model.build(experiment.data, experiment.loss)


def save_checkpoint(path: Path, experiment: Experiment, content: dict[str, Any], previous: Path | None = None) -> None:
    """Writes a checkpoint atomically, with its experiment and a digest.

    Args:
        path: Where to.
        experiment: Stored beside the content.
        content: Tensors and plain values by name.
        previous: Where the checkpoint that is replaced is kept; it is deleted if None.

    Raises:
        RunError: If it cannot be written.
    """
    whole = {"format": FORMAT, "cdn_tune": __version__, "experiment": experiment.plain(), **content}
    whole[DIGEST] = digest(whole)
    write_atomic(path, lambda file: torch.save(whole, file), previous)


def digest(value: Any) -> str:
    """Returns the SHA-256 of nested dicts, lists, tuples, tensors and plain values, in hexadecimal."""
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()


def _feed(found: "hashlib._Hash", value: Any) -> None:
    if isinstance(value, torch.Tensor):
        found.update(f"{value.dtype}{[*value.shape]}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, dict):
        for key, item in value.items():
            found.update(f"{key!r}:".encode())
            _feed(found, item)
    elif isinstance(value, list | tuple):
        found.update(f"{len(value)}[".encode())
        for item in value:
            _feed(found, item)
    else:
        found.update(repr(value).encode())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint's content onto the CPU; no code in the file is run.

    Raises:
        CheckpointError: If it is missing, damaged, or not one of ours.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about foreign pickles, which are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle fails in any way, an IndexError among them
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to run the code in it
            reason = "no plain archive of tensors; anything else might run code and is not opened"
        raise CheckpointError(f"{path}: damaged or no checkpoint ({reason}); {_ANOTHER}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path}: checkpoint format {found!r}, but this version of cdn-tune reads format {FORMAT}"
        )
    if not _fits_digest(content):
        raise CheckpointError(f"{path}: damaged (its content does not match its digest); {_ANOTHER}")
    return content


def _fits_digest(content: dict[str, Any]) -> bool:
    wanted = content.pop(DIGEST, None)
    try:
        return bool(wanted == digest(content))
    except (RuntimeError, TypeError):  # a tensor without plain bytes, or a container in itself: never ours
        return False


def load_checkpoint(path: Path) -> Checkpoint:
    """Rebuilds a model from its checkpoint alone.

    Raises:
        CheckpointError: If the file is missing or damaged, or its weights do not fit its experiment.
    """
    content = read_model(path)
    try:
        experiment = build(Experiment, content["experiment"], f"{path}: experiment")
        model = build_model(experiment)
    except ConfigError as error:
        raise CheckpointError(str(error).splitlines()[0]) from None
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:  # more weights than fit, or can be counted
        raise CheckpointError(f"{path}: its model cannot be built ({brief(error)}); {_ANOTHER}") from None
    load_weights(model, content["model"], path)
    return Checkpoint(
        path, experiment, model.eval(), content["epoch"], content["val"], content["planted"], content.get("kernels")
    )


def read_model(path: Path) -> dict[str, Any]:
    """Reads a kept model's content: `experiment`, `model`, `epoch`, `val` and `planted`, each of its type.

    Raises:
        CheckpointError: If it is missing, damaged, not one of ours, or holds something else; names the first entry.
    """
    content = read_checkpoint(path)
    for name, (what, fits) in ENTRIES.items():
        if not fits(content.get(name)):
            raise CheckpointError(f"{path}: {name!r} is missing or is not {what}; {_ANOTHER}")
    return content


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _maps(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and fits(item) for key, item in value.items())


# What a kept model's content is, in words and as a check.
ENTRIES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "experiment": ("a configuration", lambda value: _maps(value, lambda _: True)),
    "model": ("tensors by name", lambda value: _maps(value, lambda item: isinstance(item, torch.Tensor))),
    "epoch": ("a number of epochs", lambda value: type(value) is int and value >= 0),
    "val": ("metrics by name", lambda value: _maps(value, _is_number)),
    "planted": ("true, false or drawn videos", is_mark),
}


def load_weights(model: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Loads weights strictly.

    Raises:
        CheckpointError: Naming entries that are missing, unknown, of another shape, or not finite.
    """
    try:
        model.load_state_dict(state, strict=True)
    except (RuntimeError, NotImplementedError) as error:  # the latter for tensors without values
        told = beginning(str(error).partition("\n")[2], 300)
        raise CheckpointError(f"{path}: its weights do not fit its experiment: {told}; {_ANOTHER}") from None
    wrong = [name for name, value in model.state_dict().items() if not bool(value.isfinite().all())]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CheckpointError(f"{path}: its weights {wrong[0]}{more} are not finite; {_ANOTHER}")
