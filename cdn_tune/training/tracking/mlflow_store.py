"""Runs on an MLflow server or in a store of MLflow's: what is there already, and what is missing.

How far a run is logged is noted in tags of its own, written in one request with what they tell of. So nothing has to be
remembered here: whoever goes on, another process or another machine, finds it there.
"""

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cdn_tune.config.tracking import TrackingConfig
from cdn_tune.errors import ConfigError, RunError
from cdn_tune.training.object_store.working_copy import place_of
from cdn_tune.training.runs.records import METRICS, parse_metrics, read_metrics
from cdn_tune.training.tracking.client_settings import client_settings
from cdn_tune.training.tracking.tracked_run import Point, TrackedRun, plain_name, points

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN, KEY, STEPS, STATE = "cdn_tune.run", "cdn_tune.key", "cdn_tune.steps", "cdn_tune.state"
_PARENT = "mlflow.parentRunId"
_ENTITIES, _PARAMS = 1000, 100  # metrics and tags, and parameters, that MLflow takes in one request
_LONGEST = 500  # characters of a value
_PAGE = 1000

Item = TypeVar("Item")


def check_installed() -> None:
    """Raises a `ConfigError` if MLflow's client is not installed."""
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigError("tracking.mlflow: MLflow's client is not installed; pip install 'cdn-tune[mlflow]'")


@dataclass
class _Logged:
    """How far a run is logged."""

    id: str
    steps: int = -1  # -1: not even its parameters
    state: str = ""
    seen: int = -1  # steps that it had when its records were read last


class MlflowStore:
    """The runs of one run folder in an experiment of MLflow's; is made and used under `client_settings`.

    Args:
        config: Where.
        run_id: Of the run folder.

    Raises:
        RunError: If the experiment was deleted there. MLflow raises errors of its own, here and in all methods.
    """

    def __init__(self, config: TrackingConfig, run_id: str) -> None:
        self._uri, self._run_id = str(config.mlflow), run_id
        self._client = _client(self._uri)
        found = self._client.get_experiment_by_name(config.experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            raise RunError(
                f"the experiment {config.experiment} was deleted there; restore it (mlflow experiments restore "
                f"--experiment-id {found.experiment_id}), or set tracking.experiment to another name"
            )
        self._experiment: str = found.experiment_id if found else self._client.create_experiment(config.experiment)
        self._logged = {run.data.tags[KEY]: _read(run) for run in self._runs() if KEY in run.data.tags}

    def url(self, key: str) -> str:
        """Returns where a run is shown, or the store it is in."""
        shown = f"{self._uri}/#/experiments/{self._experiment}/runs/{self._logged[key].id}"
        return shown if self._uri.lower().startswith("http") else self._uri

    def log(self, run: TrackedRun, patient: bool = False) -> None:
        """Logs what is missing of a run, whose parent is logged; no request if that is nothing.

        Args:
            run: The run.
            patient: Whether records that were not there yet when they should have been are read once more.
        """
        logged = self._logged.get(run.key)
        if logged is None:
            logged = self._logged[run.key] = _Logged(self._create(run))
        if logged.steps < 0:
            names = {plain_name(key): value[:_LONGEST] for key, value in run.params.items()}
            for part in _parts(names.items(), _PARAMS):
                self._batch(logged.id, params=part)
            self._batch(logged.id, tags={STEPS: "0"})
            logged.steps = 0
        if logged.steps < run.steps and (patient or logged.seen < run.steps):
            logged.seen = run.steps
            for some in _batches(points(run, logged.steps, _records)):
                self._batch(logged.id, points=some, tags={STEPS: str(some[-1].step)})
                logged.steps = some[-1].step
        if logged.state != run.state:
            self._set_state(logged.id, run)
            logged.state = run.state

    def add(self, key: str, files: Mapping[str, Path | str]) -> None:
        """Uploads files to a logged run: paths, or texts, by name; paths that do not exist are left out."""
        run_id = self._logged[key].id
        for name, file in files.items():
            if isinstance(file, str):
                self._client.log_text(run_id, file, name)
            elif file.is_file():
                self._client.log_artifact(run_id, str(file), str(Path(name).parent) if "/" in name else None)

    def _runs(self) -> Iterator[Any]:
        """Yields the run folder's runs that are there; deleted ones are not."""
        token = None
        while True:
            wanted = f"tags.`{RUN}` = '{self._run_id}'"
            page = self._client.search_runs([self._experiment], wanted, max_results=_PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _create(self, run: TrackedRun) -> str:
        tags = {**run.tags, RUN: self._run_id, KEY: run.key}
        if run.parent is not None:
            tags[_PARENT] = self._logged[run.parent].id
        made = self._client.create_run(self._experiment, start_time=run.started, tags=tags, run_name=run.name)
        return str(made.info.run_id)

    def _set_state(self, run_id: str, run: TrackedRun) -> None:
        if run.status in ("RUNNING", "SCHEDULED"):
            self._client.update_run(run_id, status=run.status)
        else:
            self._client.set_terminated(run_id, run.status, run.ended)
        self._batch(run_id, tags={**run.tags, STATE: run.state})  # last: without it, all of this is done again

    def _batch(
        self,
        run_id: str,
        params: Iterable[tuple[str, str]] = (),
        points: Iterable[Point] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [
            Metric(name, value, point.milliseconds or 0, point.step)
            for point in points
            for name, value in point.values.items()
        ]
        noted = [RunTag(key, value[:_LONGEST]) for key, value in (tags or {}).items()]
        self._client.log_batch(run_id, metrics, [Param(*each) for each in params], noted)


def _client(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    client_settings.silence()
    return MlflowClient(tracking_uri=uri)


def _read(run: Any) -> _Logged:
    tags = run.data.tags
    steps = tags.get(STEPS, "-1")
    return _Logged(run.info.run_id, int(steps) if steps.isdecimal() else -1, tags.get(STATE, ""))


def _records(folder: Path) -> list[dict[str, Any]]:
    """Returns the epochs recorded in a trial's folder, on the run's object store if it has one."""
    place = place_of(folder)
    if place is None:
        return read_metrics(folder)
    name = (folder.relative_to(place.root) / METRICS).as_posix()
    return parse_metrics((place.store.read(name) or b"").decode("utf-8", errors="replace"))


def _batches(found: Iterable[Point]) -> Iterator[list[Point]]:
    """Yields epochs in lists that MLflow takes whole, with a tag: of more it makes several requests, tags first."""
    batch: list[Point] = []
    for point in found:
        if batch and sum(len(each.values) for each in (*batch, point)) >= _ENTITIES:
            yield batch
            batch = []
        batch.append(point)
    if batch:
        yield batch


def _parts(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    """Yields items in lists of at most so many."""
    rest = iter(items)
    for first in rest:
        yield [first, *islice(rest, most - 1)]
