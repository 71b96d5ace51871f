"""Making a search's study anew from what its run folder records, where the study was lost or damaged."""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from cdn_tune.config import Experiment, SearchSpace, build, load_experiment
from cdn_tune.config.secrets import without_secrets
from cdn_tune.config.yaml import read_mapping
from cdn_tune.errors import CdnTuneError, RunError
from cdn_tune.training.runs.files import write_json
from cdn_tune.training.runs.run_folder import EXPERIMENT, MANIFEST, SPACE, locked, read_manifest
from cdn_tune.tuning.layout import DATABASE, JOURNAL, study_url
from cdn_tune.tuning.results.folder import LOST, FolderTrials
from cdn_tune.tuning.results.leaderboard import state_of
from cdn_tune.tuning.results.record import quiet, read_study
from cdn_tune.tuning.storage.check import JOURNAL as JOURNAL_URL
from cdn_tune.tuning.storage.check import MEMORY, check_shared
from cdn_tune.tuning.storage.named import storage_of
from cdn_tune.tuning.storage.open import open_storage
from cdn_tune.tuning.study.candidates import Candidates
from cdn_tune.tuning.study.failures import MEMORY as OUT_OF_MEMORY
from cdn_tune.tuning.study.filtered_study import CONSTRAINT, StoredStudy, altered, stored_study
from cdn_tune.tuning.study.ranking import CONFIRMATION, COPY, LEARNED, Objectives, own, role_of

_OLD = ".old"  # behind the name of the study that was set aside


@dataclass(frozen=True)
class Rebuilt:
    """A study that was made anew."""

    storage: str  # where it lies, without a password
    counts: dict[str, int]  # its entries by state
    unknown: list[int]  # numbers of the trials whose parameters are on no record; they count as refused
    set_aside: list[Path]  # what remains of the study as it was
    notes: list[str]  # lines for the user


def rebuild(run: Path, storage: str | None = None) -> Rebuilt:
    """Makes a search's study anew from its run folder, and from the study as far as it can be read.

    What the folder does not record is made up for: times are those of the trials' files, values of trials without
    metrics are rounded as in the leaderboard, the hours of searching count from 0.

    Args:
        run: The run folder; of a run on an object store, its copy here.
        storage: Where the study is to lie; where it lay if None.

    Raises:
        RunError: If the folder is no search's or in use, its study knows all trials, or it shows none.
    """
    manifest = read_manifest(run)
    if manifest["kind"] != "search":
        raise RunError(f"{run}: is a {manifest['kind']} run, which has no study; name a search's run folder")
    with locked(run), quiet():
        url = study_url(run) if storage is None and manifest.get("storage") == MEMORY else storage_of(run, storage)
        check_shared(run, url)
        space = build(SearchSpace, read_mapping(run / SPACE), str(run / SPACE))
        base = load_experiment(run / EXPERIMENT)
        folder = FolderTrials.read(run)
        held, attributes = _readable(url, space, base, run)
        if held is not None and not folder.unknown(held):
            raise RunError(f"{run}: its study knows all trials that the folder shows; there is nothing to make anew")
        if not folder.numbers():
            raise RunError(f"{folder.fault or f'{run}: shows no trial'}; without its study nothing of it is left")
        entries = folder.entries(space, base, held or [])
        candidates = Candidates(space, base)
        entries = [_with_constraints(trial, candidates) for trial in entries]
        known = {"run_id": manifest.get("run_id"), "objectives": list(Objectives(space, base).names)}
        attributes = {**attributes, **{key: value for key, value in known.items() if value is not None}}
        study = partial(_write, space=space, base=base, entries=entries, attributes=attributes)
        is_own = url == study_url(run)
        set_aside = _make_own(run, study) if is_own else []
        if not is_own:
            study(open_storage(url))
        kept = {key: value for key, value in manifest.items() if key != "storage"}
        write_json(run / MANIFEST, kept if is_own else {**kept, "storage": without_secrets(url)})
    lost = [trial.number for trial in entries if trial.user_attrs.get("reason") == LOST]
    counts = Counter(state_of(trial) for trial in entries if trial.number not in lost)
    where = str(run / JOURNAL) if is_own else without_secrets(url)
    return Rebuilt(where, dict(counts), lost, set_aside, [folder.fault] if folder.fault else [])


def _readable(
    url: str, space: SearchSpace, base: Experiment, run: Path
) -> tuple[list[FrozenTrial] | None, dict[str, Any]]:
    """Returns the entries and attributes of the study as it is; no entries if it cannot be read."""
    try:
        entries, _, attributes = read_study(url, space, base, run)
    except CdnTuneError:
        return None, {}
    return entries, attributes


def _with_constraints(trial: FrozenTrial, candidates: Candidates) -> FrozenTrial:
    """Returns an entry with its violations of the constraints, which the folder does not record."""
    held = {key: value for key, value in trial.system_attrs.items() if key.startswith(CONSTRAINT)}
    if held or not trial.params or role_of(trial) in (COPY, LEARNED, CONFIRMATION):
        return trial
    found = dict(candidates.judge(trial.params).violations) if candidates.space.expressions else {}
    if trial.user_attrs.get("failure") == OUT_OF_MEMORY:
        found["memory"] = 1.0
    return altered(
        trial, system_attrs={**trial.system_attrs, **{CONSTRAINT + name: each for name, each in found.items()}}
    )


def _make_own(run: Path, write: Callable[[BaseStorage], None]) -> list[Path]:
    """Makes the run folder's own study, sets the old one aside, and returns what is left of that."""
    new = run / f".{JOURNAL}.new.tmp"
    new.unlink(missing_ok=True)
    write(open_storage(f"{JOURNAL_URL}{new}", sole_writer=True))
    old = [path for name in (JOURNAL, DATABASE) for path in sorted(run.glob(f"{name}*")) if path.suffix != _OLD]
    aside = [path.replace(path.with_name(path.name + _OLD)) for path in old]
    new.replace(run / JOURNAL)
    return aside


def _write(
    storage: BaseStorage, space: SearchSpace, base: Experiment, entries: list[FrozenTrial], attributes: dict[str, Any]
) -> None:
    """Writes a study into a storage, in place of one of its name."""
    with suppress(KeyError):
        storage.delete_study(storage.get_study_id_from_name(space.name))
    study = stored_study(storage, space.name, Objectives(space, base).directions)
    with study.transaction():
        for trial in entries:
            storage.create_new_trial(study.id_in_storage, trial)
        for key, value in attributes.items():
            study.set_user_attr(key, value)
        _queue_first(study, Candidates(space, base), entries)


def _queue_first(study: StoredStudy, candidates: Candidates, entries: list[FrozenTrial]) -> None:
    """Queues the points to try first that no trial has."""
    held = [trial.params.items() | trial.system_attrs.get("fixed_params", {}).items() for trial in own(entries)]
    for point in candidates.points():
        if not any(point.items() <= params for params in held):
            study.enqueue_trial(point)
