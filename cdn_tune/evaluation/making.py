"""How the features were made that a model was trained on, as its run or its export tells."""

from pathlib import Path

from cdn_tune.config import DataConfig
from cdn_tune.data.files import brief
from cdn_tune.data.fingerprint import are_features_of
from cdn_tune.data.layouts import features_path
from cdn_tune.data.videos.making import Making, from_plain, read_making
from cdn_tune.errors import DataError, RunError
from cdn_tune.training.runs.run_folder import MANIFEST, read_manifest


def trained_making(checkpoint: Path, data: DataConfig) -> Making | None:
    """Returns how the features were made that a checkpoint was trained on, None if nothing says it.

    The manifest of the run that it lies in has this; the feature file else, where that is in its place and still what
    the manifest recorded.

    Raises:
        DataError: If what is said cannot be read.
    """
    run = next((folder for folder in checkpoint.absolute().parents if (folder / MANIFEST).is_file()), None)
    if run is None:
        return None
    try:
        facts = read_manifest(run).get("data", {})
    except RunError:  # damaged; the checkpoint is whole
        return None
    if (said := facts.get("making")) is not None:
        return read_said(said, run / MANIFEST)
    try:
        features = features_path(data)
    except DataError:  # no data here
        return None
    return read_making(features) if are_features_of(facts, features) else None


def read_said(said: object, where: Path) -> Making:
    """Returns the making that a JSON file names; `where` starts the message.

    Raises:
        DataError: If it is none.
    """
    try:
        return from_plain(said)
    except ValueError as error:
        raise DataError(
            f"{where}: does not tell how the features were made ({brief(error, 100)}); restore it"
        ) from None
