"""What MLflow's client takes from the process and not as arguments: variables of the environment, levels of loggers."""

import logging
import os
import threading
from contextlib import ExitStack

# Unless the environment has others: the client gives up early, for it is asked again; it reports to nobody.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
LOGGERS = ("mlflow", "alembic")


class ClientSettings:
    """Holds the settings while any thread is in its block; then the process has its own again.

    The process may be a notebook, which uses MLflow for itself.
    """

    def __init__(self) -> None:
        self._lock, self._threads, self._restore = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        """Sets the variables, if this is the first thread."""
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                for name in SETTINGS.keys() - os.environ.keys():
                    os.environ[name] = SETTINGS[name]
                    self._restore.callback(os.environ.pop, name, None)

    def __exit__(self, *_: object) -> None:
        """Sets variables and levels back, if this was the last thread."""
        with self._lock:
            self._threads -= 1
            if self._threads == 0:
                self._restore.close()

    def silence(self) -> None:
        """Has the loggers tell of errors alone; within a block, once MLflow is imported, which sets their levels."""
        with self._lock:
            for logger in map(logging.getLogger, LOGGERS):
                self._restore.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.ERROR)


client_settings = ClientSettings()
