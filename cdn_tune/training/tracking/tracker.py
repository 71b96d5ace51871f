"""Logs a run to MLflow while it goes on: in a thread, which nothing waits for before the run has ended."""

import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from cdn_tune.config.tracking import TrackingConfig
from cdn_tune.data.files import brief
from cdn_tune.training.tracking.client_settings import client_settings
from cdn_tune.training.tracking.mlflow_store import MlflowStore, check_installed
from cdn_tune.training.tracking.tracked_run import TrackedRun

_AWAY = re.compile("Max retries exceeded|timed out|Connection (refused|reset|aborted)|RemoteDisconnected")
_LOG = logging.getLogger(__name__)
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds between two attempts
CLOSING_SECONDS = 60.0  # that the end of a run waits for what is missing
LEAVING_SECONDS = 5.0  # the same of a run that was interrupted or has failed
_TOLD = 3  # how often it is told that MLflow is away


class Tracker:
    """Keeps MLflow up to date with a run.

    It is offered how the run stands, as often as one likes; the last offer counts, and what of it is missing there is
    logged. While MLflow does not answer nothing is lost, for what was offered and the run folder hold everything.

    Args:
        config: Where.
        run_id: Of the run folder.
        connect: Opens the store.

    Raises:
        ConfigError: If MLflow is not installed.
    """

    def __init__(
        self, config: TrackingConfig, run_id: str, connect: Callable[[TrackingConfig, str], MlflowStore] = MlflowStore
    ) -> None:
        check_installed()
        self._config, self._connect = config, partial(connect, config, run_id)
        self._runs: Sequence[TrackedRun] = ()
        self._files: Mapping[str, Path | str] = {}
        self._offered, self._closing = threading.Event(), threading.Event()
        self._told, self._is_away = 0, False
        self._link: str | None = None  # once everything is logged
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def offer(self, runs: Sequence[TrackedRun]) -> None:
        """Has everything about these runs logged, parents first; returns at once."""
        self._runs = runs
        self._offered.set()

    def close(
        self, runs: Sequence[TrackedRun], files: Mapping[str, Path | str], seconds: float = CLOSING_SECONDS
    ) -> str:
        """Has the end of the runs logged, and files of the first; returns a line that tells whether all of it is.

        Waits for so many seconds at most, and not at all for what does not answer.
        """
        self._runs, self._files = runs, files
        self._closing.set()
        self._offered.set()
        self._thread.join(seconds)
        self.abandon()
        if self._link is not None:
            return f"MLflow: {self._link}"
        return f"MLflow, {self._config.mlflow}: not everything is logged there; the same command logs what is missing"

    @property
    def is_complete(self) -> bool:
        """Whether everything is logged, once it is closed."""
        return self._link is not None

    def abandon(self) -> None:
        """Ends the thread after the request under way."""
        self._ended.set()
        self._closing.set()
        self._offered.set()

    def _work(self) -> None:
        with client_settings:
            self._log()

    def _log(self) -> None:
        store, pause = None, 0.0
        while True:
            if pause:
                self._closing.wait(pause)
            else:
                self._offered.wait()
            self._offered.clear()
            is_last, runs = self._closing.is_set(), self._runs
            if self._ended.is_set():
                return
            try:
                store = store or self._connect()
                for run in runs:
                    if self._ended.is_set():
                        return
                    store.log(run, patient=is_last)
                if is_last:
                    store.add(runs[0].key, self._files)
                    self._link = store.url(runs[0].key)
                pause, self._is_away = 0.0, False
            except Exception as error:  # of MLflow, of HTTP, of a database: none may end the run
                store, pause = None, min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
                self._tell(error)
            if is_last:
                return

    def _tell(self, error: Exception) -> None:
        if self._is_away or self._told >= _TOLD:
            return
        self._told, self._is_away = self._told + 1, True
        fault = _fault(self._config, error)
        _LOG.warning("%s; the run goes on, and what is missing is logged later", fault)


def add_files(config: TrackingConfig, run_id: str, key: str, files: Mapping[str, Path | str]) -> str | None:
    """Uploads files to a run that is logged; returns a line that tells why not, if so."""
    try:
        with client_settings:
            MlflowStore(config, run_id).add(key, files)
    except Exception as error:  # as above
        return f"{_fault(config, error)}; not there: {', '.join(files)}"
    return None


def _fault(config: TrackingConfig, error: Exception) -> str:
    """Returns what is wrong with MLflow, in a line."""
    cause = brief(error)
    return f"MLflow, {config.mlflow}: {'does not answer' if _AWAY.search(str(error)) else cause}"
