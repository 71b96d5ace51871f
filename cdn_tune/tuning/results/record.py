"""A search's record, read from its run folder and its storage without writing to either, also while it runs."""

import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from cdn_tune.config import Experiment, SearchSpace, load_experiment
from cdn_tune.config.check import searched_families
from cdn_tune.config.load import build
from cdn_tune.config.secrets import without_secrets
from cdn_tune.config.yaml import read_mapping
from cdn_tune.data.mark import to_mark
from cdn_tune.errors import CdnTuneError, RunError
from cdn_tune.training.object_store.sync import fetched
from cdn_tune.training.object_store.working_copy import shown
from cdn_tune.training.runs.run_folder import EXPERIMENT, SPACE, read_manifest
from cdn_tune.tuning.results.folder import FolderTrials, to_directions
from cdn_tune.tuning.results.leaderboard import Row, leaderboard
from cdn_tune.tuning.storage.check import JOURNAL, SQLITE, UnusableStudy, one_line
from cdn_tune.tuning.storage.named import is_server, is_there, storage_of
from cdn_tune.tuning.study.candidates import Candidates
from cdn_tune.tuning.study.ranking import pareto_front, seed_of
from cdn_tune.tuning.study.soundness import check_study


@dataclass(frozen=True)
class Record:
    """What is on record of a search."""

    run: Path
    space: SearchSpace
    base: Experiment  # under all fixed overrides
    entries: list[FrozenTrial]  # everything that was ever proposed or learned, by number
    directions: list[StudyDirection]  # of the objectives
    attributes: Mapping[str, Any]  # of the search as a whole
    notice: str | None = None  # why the entries are those that the run folder shows, if not the study's

    @property
    def metric(self) -> str:
        """Name of the val metric that ranks."""
        return self.base.eval.metric

    @property
    def objectives(self) -> dict[str, StudyDirection]:
        """The objectives' names and directions, in order."""
        names = self.attributes.get("objectives") or [each.metric for each in self.space.objectives] or [self.metric]
        return dict(zip(names, self.directions, strict=False))

    @property
    def families(self) -> list[str]:
        """Names of the model families that are searched."""
        return list(searched_families(self.space, self.base.model.name))

    @property
    def gpus(self) -> float:
        """GPUs that a trial occupies."""
        resources = self.space.resources
        return float(self.attributes.get("gpus_per_trial", resources.workers * resources.gpus_per_worker))

    def rows(self) -> list[Row]:
        """Returns the leaderboard."""
        keys, metrics = list(self.space.parameters), self.base.eval.metrics
        return leaderboard(self.entries, keys, metrics, directions=self.directions, gpus=self.gpus)

    def entry(self, number: int) -> FrozenTrial:
        """Returns one entry.

        Raises:
            RunError: If there is none of that number.
        """
        for trial in self.entries:
            if trial.number == number:
                return trial
        numbers = f"0 to {self.entries[-1].number}" if self.entries else "none so far"
        raise RunError(f"{self.run}: has no trial {number}; its trials are {numbers}")

    def experiment(self, number: int) -> Experiment:
        """Returns the experiment of one entry, as the trial trains it.

        Raises:
            RunError: If there is none of that number.
            ConfigError: If its values do not go together.
        """
        entry = self.entry(number)
        params = dict(sorted(entry.params.items(), key=_by_layer))
        return Candidates(self.space, self.base).experiment(params, f"{self.run}: trial {number}", seed_of(entry))


def read_record(run: Path, storage: str | None = None) -> Record:
    """Reads what is on record of a search; neither the run folder nor the storage is written to or held.

    Where the study is lost, damaged or behind, the entries are those that the run folder shows, and the notice says so.

    Args:
        run: The run folder.
        storage: The study's storage URL, if it needs what the manifest leaves out, such as a password.

    Raises:
        RunError: If the folder is no run folder or a training's, or its study cannot be read and nothing else shows
            its trials, or it is on a server that only the folder names.
        ConfigError: If its experiment or search space is damaged.
    """
    run = fetched(run)
    manifest = read_manifest(run)
    if manifest["kind"] != "search":
        raise RunError(f"{run}: is a {manifest['kind']} run, which has no leaderboard; name a search's run folder")
    space = build(SearchSpace, read_mapping(run / SPACE), str(run / SPACE))
    base = load_experiment(run / EXPERIMENT)
    url = storage_of(run, storage)
    folder = FolderTrials.read(run)
    planted = {"planted": to_mark(_data(manifest).get("planted"))}
    try:
        if storage is None and not is_there(url) and (unknown := folder.unknown([])):
            raise RunError(unknown_fault(run, unknown))
        entries, directions, attributes = read_study(url, space, base, run)
        unknown = folder.unknown(entries)
        if not unknown:
            return Record(run, space, base, entries, directions, {**planted, **attributes})
        fault = unknown_fault(run, unknown)
    except RunError as error:
        if storage is not None or not folder.numbers():
            raise
        entries, attributes, fault = [], {}, str(error)
    notice = f"{fault}; shown is what the run folder records of its trials"
    found = folder.entries(space, base, entries)
    return Record(run, space, base, found, to_directions(space, base), {**planted, **attributes}, notice)


def unknown_fault(run: Path, unknown: list[int]) -> str:
    """Returns, in words, that a study does not know trials of its run folder, and what to do."""
    named = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
    return (
        f"{run}: its study does not know {len(unknown)} of the trials that the folder shows ({named}); bring the study "
        f"back, or {rebuild_command(run)} makes it anew from the folder"
    )


def front_trials(run: Path) -> list[int]:
    """Returns the numbers of the trials on the Pareto front, best in the first objective first.

    Raises:
        RunError: If the folder is no search run, has one objective, its study cannot be read, or no trial is complete.
    """
    record = read_record(run)
    if record.notice is not None:
        raise RunError(record.notice)
    if len(record.directions) < 2:
        raise RunError(f"{run}: has one objective, so its Pareto front is its best trial; leave --front out")
    front = [trial.number for trial in pareto_front(record.entries, record.directions)]
    if not front:
        raise RunError(f"{run}: no trial is complete, so there is no Pareto front; let the search run on")
    return front


_Study = tuple[list[FrozenTrial], list[StudyDirection], dict[str, Any]]


def read_study(url: str, space: SearchSpace, base: Experiment, run: Path) -> _Study:
    """Reads the entries, directions and attributes of a search's study, from a storage of any kind.

    Args:
        url: The storage's.
        space: What is searched; names the study.
        base: The base experiment under all fixed overrides.
        run: The run folder, for messages.

    Raises:
        RunError: If it cannot be read, or holds what no search writes.
    """
    where = without_secrets(url)

    def load(opened: BaseStorage) -> _Study:
        try:
            study = opened.get_study_id_from_name(space.name)
        except KeyError:
            raise RunError(
                f"{run}: {where} holds no study named {space.name} yet; start the search, or wait for its first trial"
            ) from None
        found = opened.get_all_trials(study, deepcopy=False)
        return found, list(opened.get_study_directions(study)), dict(opened.get_study_user_attrs(study))

    with study_errors(run, url), quiet():
        study = _read(url, run, load)
        check_study(space, base, *study)
        return study


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Optuna's remarks and warnings, of several lines each, in the block."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


@contextmanager
def study_errors(run: Path, url: str) -> Iterator[None]:
    """Has what Optuna and SQLAlchemy meet in a damaged or a stranger's study, in the block, be one line.

    Raises:
        RunError: With the remedy.
    """
    try:
        yield
        return
    except UnusableStudy as error:
        fault = error.fault
    except CdnTuneError:
        raise
    except Exception as error:  # these libraries raise whatever comes of the values that they meet
        where = without_secrets(url) if "://" in url else "a storage of unknown kind"
        fault = f"its study cannot be read from {where} ({one_line(error) or type(error).__name__})"
    remedy = f"bring back a copy of it, or {rebuild_command(run)} makes it anew from the run folder"
    if is_server(url):
        remedy = "check that the storage can be reached, and name it with --storage if it needs a password"
    raise RunError(f"{run}: {fault}; {remedy}")


def rebuild_command(run: Path) -> str:
    """Returns the command that makes a search's study anew."""
    return f"cdn-tune search rebuild {shlex.quote(shown(run))}"


def _read(url: str, run: Path, load: Callable[[BaseStorage], _Study]) -> _Study:
    if url.startswith(JOURNAL):
        path = Path(url.removeprefix(JOURNAL))
        _require(path, run)
        # Reads whole lines only, so that a line that is being written, or was torn by a kill, is no obstacle.
        return load(JournalStorage(JournalFileBackend(str(path))))
    from cdn_tune.tuning.storage.database import read_server, read_sqlite

    if url.startswith(SQLITE):
        path = Path(url.removeprefix(SQLITE).partition("?")[0])
        _require(path, run)
        return read_sqlite(path, load)
    return read_server(url, load)


def _require(path: Path, run: Path) -> None:
    if not path.is_file():
        raise RunError(f"{run}: has no study yet (no {path}); wait for the search's first trial")


def _data(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    data = manifest.get("data")
    return data if isinstance(data, dict) else {}


def _by_layer(item: tuple[str, Any]) -> tuple[str, int]:
    key, _, index = item[0].partition("[")
    return key, int(index.rstrip("]") or 0)
