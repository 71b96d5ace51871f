"""The beginning of a train run: a new one, possibly from another one's weights; the same again; or a longer one."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from cdn_tune.config import Experiment, build
from cdn_tune.config.yaml import dump, read_mapping
from cdn_tune.data.files import sha256
from cdn_tune.errors import CheckpointError, ConfigError, RunError
from cdn_tune.training.runs.checkpoint import (
    BEST,
    LAST,
    START,
    build_model,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)
from cdn_tune.training.runs.files import write_text
from cdn_tune.training.runs.run_folder import EXPERIMENT, MANIFEST, claim, differences, read_manifest
from cdn_tune.training.state import with_epochs
from cdn_tune.training.step.optimiser import uses_length

_SHOWN = 3  # differences that are told


def claim_training(run: Path, experiment: Experiment, manifest: dict[str, Any], start: Path | None = None) -> bool:
    """Writes a train run's configuration into a locked folder, or checks that the folder holds just this run.

    A run whose learning rates do not depend on its length may become longer; what the folder holds is updated.

    Args:
        run: The run folder.
        experiment: What is trained.
        manifest: Written if the folder is new.
        start: A checkpoint from whose weights a new run starts; they are copied into the folder.

    Returns:
        Whether the folder already held this run.

    Raises:
        RunError: If it holds another run, or one that cannot become longer or began otherwise.
        CheckpointError: If the checkpoint cannot be read or does not fit the experiment.
    """
    if not (run / MANIFEST).exists():
        (run / START).unlink(missing_ok=True)  # of a command that was killed before the run had begun
        if start is not None:
            save_checkpoint(run / START, experiment, {"model": _weights(start, experiment)})
            manifest = {**manifest, "start": {"checkpoint": str(start.absolute()), "sha256": sha256(start)}}
        return claim(run, manifest, {EXPERIMENT: experiment.plain()})
    held, asked = _held_epochs(run), experiment.train.epochs
    claim(run, manifest, {EXPERIMENT: with_epochs(experiment, held).plain()})
    if start is not None and str(start.absolute()) != (read_manifest(run).get("start") or {}).get("checkpoint"):
        raise RunError(f"{run}: did not begin from {start}; leave --from out to go on, or choose another --run folder")
    if asked != held:
        differs = f"{run / EXPERIMENT}: train.epochs is {held} there, {asked} here"
        if asked < held:
            raise RunError(f"{differs}; a run can become longer only: choose another --run folder")
        if uses_length(experiment.optim):
            raise RunError(
                f"{differs}, and with optim.schedule={experiment.optim.schedule} all learning rates depend on it; "
                f"add --from {run / LAST} and choose another --run folder: a new run then starts from its weights"
            )
        write_text(run / EXPERIMENT, dump(experiment.plain()))
    return True


def _held_epochs(run: Path) -> int:
    """Returns the number of epochs with which a run was started last."""
    try:
        return build(Experiment, read_mapping(run / EXPERIMENT), str(run / EXPERIMENT)).train.epochs
    except ConfigError as error:
        first = str(error).splitlines()[0]
        raise RunError(f"{first}; restore the file, or choose another --run folder") from None


def _weights(path: Path, experiment: Experiment) -> dict[str, Any]:
    """Returns a checkpoint's weights, those that are evaluated; checks that they fit the experiment's model."""
    if path.is_dir():
        raise CheckpointError(f"--from {path}: is a folder; name a checkpoint in it, such as {path / BEST}")
    content = read_checkpoint(path)
    means = content.get("ema")
    weights: Any = means[0] if isinstance(means, list | tuple) and means else content.get("model")
    model = build_model(experiment)
    if _shapes(weights) != _shapes(model.state_dict()):
        why = ", ".join(islice(_differences(content.get("experiment"), experiment), _SHOWN)) or "other weights"
        raise CheckpointError(
            f"--from {path}: is of another model ({why}); set it as there, or name another checkpoint"
        )
    load_weights(model, weights, path)
    return dict(weights)


def _shapes(weights: Any) -> dict[str, Any] | None:
    """Returns the shapes of weights by name; None if they are none."""
    return (
        {name: getattr(value, "shape", None) for name, value in weights.items()} if isinstance(weights, dict) else None
    )


def _differences(held: Any, experiment: Experiment) -> Iterator[str]:
    """Yields in what the model of a checkpoint's experiment, as far as that can be read, differs from this one's."""
    if not isinstance(held, dict):
        return
    with suppress(ConfigError):  # of another version, or damaged
        there, here = (
            {
                "model": each.model.plain(),
                "data": {key: getattr(each.data, key) for key in ("feature_size", "word_size")},
            }
            for each in (build(Experiment, held, "checkpoint"), experiment)
        )
        of_another_family = there["model"]["name"] != here["model"]["name"]  # then the keys differ with it
        yield from islice(differences(there, here), 1 if of_another_family else None)
