"""A search as recorded in a run folder, for whoever only reads: nothing is locked, created or changed."""

from __future__ import annotations

from pathlib import Path

import optuna

from cdn_tune.config import SearchSpace, build
from cdn_tune.config.yaml import read_mapping
from cdn_tune.errors import RunError
from cdn_tune.training.run_folder import SPACE, read_manifest
from cdn_tune.tuning.storage import open_storage
from cdn_tune.tuning.study import DATABASE, sqlite_url


def open_recorded(run: Path) -> optuna.Study:
    """Opens the study of a search's run folder.

    Raises:
        RunError: If the folder holds no search, or its study is gone.
    """
    manifest = read_manifest(run)
    if manifest["kind"] != "search":
        raise RunError(f"{run}: holds a {manifest['kind']} run; name the folder of a search")
    url = manifest.get("storage")
    if url is None and not (run / DATABASE).exists():
        raise RunError(f"{run}: has no {DATABASE}; the search has not begun, or the file was deleted")
    space = build(SearchSpace, read_mapping(run / SPACE), str(run / SPACE))
    try:
        return optuna.load_study(study_name=space.name, storage=open_storage(url or sqlite_url(run)))
    except KeyError:
        raise RunError(f"{run}: its storage holds no study named {space.name}; was it deleted?") from None
