"""A search's record, read from its run folder and its storage without writing to either, also while it runs."""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from cdn_tune.config import Experiment, SearchSpace, load_experiment
from cdn_tune.config.load import build
from cdn_tune.config.yaml import read_mapping
from cdn_tune.errors import RunError
from cdn_tune.training.object_store.sync import fetched
from cdn_tune.training.runs.run_folder import EXPERIMENT, SPACE, read_manifest, without_secrets
from cdn_tune.tuning.layout import study_url
from cdn_tune.tuning.results.leaderboard import Row, leaderboard
from cdn_tune.tuning.storage.check import CONNECT_SECONDS, JOURNAL, SQLITE, one_line, storage_url
from cdn_tune.tuning.study.candidates import Candidates
from cdn_tune.tuning.study.ranking import pareto_front

_HIDDEN = "***"  # in place of a password in a manifest


@dataclass(frozen=True)
class Record:
    """What is on record of a search."""

    run: Path
    space: SearchSpace
    base: Experiment  # under all fixed overrides
    entries: list[FrozenTrial]  # everything that was ever proposed or learned, by number
    directions: list[StudyDirection]  # of the objectives
    attributes: Mapping[str, Any]  # of the search as a whole

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
        params = dict(sorted(self.entry(number).params.items(), key=_by_layer))
        return Candidates(self.space, self.base).experiment(params, f"{self.run}: trial {number}")


def read_record(run: Path, storage: str | None = None) -> Record:
    """Reads what is on record of a search; neither the run folder nor the storage is written to or held.

    Args:
        run: The run folder.
        storage: The study's storage URL, if it needs what the manifest leaves out, such as a password.

    Raises:
        RunError: If the folder is no run folder or a training's, or its study cannot be read.
        ConfigError: If its experiment or search space is damaged.
    """
    run = fetched(run)
    manifest = read_manifest(run)
    if manifest["kind"] != "search":
        raise RunError(f"{run}: is a {manifest['kind']} run, which has no leaderboard; name a search's run folder")
    space = build(SearchSpace, read_mapping(run / SPACE), str(run / SPACE))
    base = load_experiment(run / EXPERIMENT)
    url = storage or manifest.get("storage") or study_url(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = _read(str(url), space.name, run)
    return Record(run, space, base, *study)


def front_trials(run: Path) -> list[int]:
    """Returns the numbers of the trials on the Pareto front, best in the first objective first.

    Raises:
        RunError: If the folder is no search run, has one objective, its study cannot be read, or no trial is complete.
    """
    record = read_record(run)
    if len(record.directions) < 2:
        raise RunError(f"{run}: has one objective, so its Pareto front is its best trial; leave --front out")
    front = [trial.number for trial in pareto_front(record.entries, record.directions)]
    if not front:
        raise RunError(f"{run}: no trial is complete, so there is no Pareto front; let the search run on")
    return front


_Study = tuple[list[FrozenTrial], list[StudyDirection], dict[str, Any]]


def _read(url: str, name: str, run: Path) -> _Study:
    """Reads a study from a storage of any kind."""
    shown = without_secrets(url) if "://" in url else "a storage of unknown kind"

    def load(opened: BaseStorage) -> _Study:
        try:
            study = opened.get_study_id_from_name(name)
        except KeyError:
            raise RunError(
                f"{run}: {shown} holds no study named {name} yet; start the search, or wait for its first trial"
            ) from None
        trials = opened.get_all_trials(study, deepcopy=False)
        attributes = opened.get_study_user_attrs(study)
        return trials, list(opened.get_study_directions(study)), dict(attributes)

    try:
        if url.startswith(SQLITE):
            return _read_sqlite(Path(make_url(url).database or ""), run, load)
        if url.startswith(JOURNAL):
            path = Path(url.removeprefix(JOURNAL))
            _require(path, run)
            # Reads whole lines only, so that a line that is being written, or was torn by a kill, is no obstacle.
            return load(JournalStorage(JournalFileBackend(str(path))))
        with _database(_server(url), {"connect_args": {"connect_timeout": CONNECT_SECONDS}}) as opened:
            return load(opened)
    except (SQLAlchemyError, StorageInternalError, ImportError, OSError, ValueError) as error:
        raise RunError(
            f"{run}: its study cannot be read from {shown} ({one_line(error)}); check that the storage can be reached, "
            "and name it with --storage if it needs a password"
        ) from None


def _read_sqlite(path: Path, run: Path, load: Callable[[BaseStorage], _Study]) -> _Study:
    """Reads a study from a sqlite file opened read-only, or from a copy of it.

    A driver that was killed in the middle of a write leaves a journal, which the next reader must roll back; one that
    may not write cannot, so it is done in a copy.
    """
    _require(path, run)
    try:
        with _database(f"{SQLITE}file:{quote(str(path))}?mode=ro&uri=true") as opened:
            return load(opened)
    except (DBAPIError, StorageInternalError):
        with tempfile.TemporaryDirectory(prefix="cdn-tune-") as folder:
            for part in path.parent.glob(f"{path.name}*"):
                shutil.copyfile(part, Path(folder) / part.name)
            with _database(f"{SQLITE}{Path(folder) / path.name}") as opened:
                return load(opened)


@contextmanager
def _database(url: str, engine: dict[str, Any] | None = None) -> Iterator[BaseStorage]:
    storage = RDBStorage(url, engine, skip_compatibility_check=True, skip_table_creation=True)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _server(url: str) -> str:
    """Returns a server's URL with its driver.

    A password that the manifest hides is left out: the server's client then reads its own files and variables
    (``~/.pgpass``, ``PGPASSWORD``).
    """
    parsed = make_url(storage_url(url))
    if parsed.password == _HIDDEN:
        user, host, port = parsed.username, parsed.host, parsed.port
        parsed = URL.create(parsed.drivername, user, None, host, port, parsed.database, parsed.query)
    return parsed.render_as_string(hide_password=False)


def _require(path: Path, run: Path) -> None:
    if not path.is_file():
        raise RunError(f"{run}: has no study yet (no {path}); wait for the search's first trial")


def _by_layer(item: tuple[str, Any]) -> tuple[str, int]:
    key, _, index = item[0].partition("[")
    return key, int(index.rstrip("]") or 0)
