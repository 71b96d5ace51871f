"""A training of its own, as MLflow is offered it."""

import secrets
from datetime import datetime
from pathlib import Path

from cdn_tune.config import Experiment, keys
from cdn_tune.data.mark import to_mark
from cdn_tune.training.object_store.sync import push_run
from cdn_tune.training.reports import EpochReport
from cdn_tune.training.runs.checkpoint import BEST
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.training.runs.run_folder import EXPERIMENT, read_manifest, record_in_manifest
from cdn_tune.training.tracking.tracked_run import STATUS, TrackedRun, experiment_tags
from cdn_tune.training.tracking.tracker import CLOSING_SECONDS, Tracker

TRAIN = "train"


class TrainTracking:
    """Offers a training to a tracker after every epoch.

    Args:
        experiment: What is trained; it names where it is logged.
        run: The run folder, claimed.
    """

    def __init__(self, experiment: Experiment, run: Path) -> None:
        self._experiment, self._run = experiment, run
        if read_manifest(run).get("run_id") is None:  # begun by an earlier version
            record_in_manifest(run, "run_id", secrets.token_hex(8))
            push_run(run)
        self._manifest = read_manifest(run)
        self._tracker = Tracker(experiment.tracking, self._manifest["run_id"])

    def report(self, done: EpochReport) -> None:
        """Offers the training after an epoch."""
        self._tracker.offer([self._tracked("running", done.epoch)])

    def close(self, seconds: float = CLOSING_SECONDS, failed: bool = False) -> str:
        """Offers its end, and its results; returns a line that tells whether they are logged."""
        files: dict[str, Path | str] = {EXPERIMENT: self._run / EXPERIMENT}
        if self._experiment.tracking.checkpoints:
            files[str(BEST)] = self._run / BEST
        last = next(reversed(read_metrics(self._run)), {"epoch": 0, "epochs": 1})
        state = "failed" if failed else "complete" if last["epoch"] >= last["epochs"] else "unfinished"
        return self._tracker.close([self._tracked(state, last["epoch"])], files, seconds)

    def abandon(self) -> None:
        """Ends it, whether everything is logged or not."""
        self._tracker.abandon()

    def _tracked(self, state: str, epochs: int) -> TrackedRun:
        experiment, began = self._experiment, datetime.fromisoformat(self._manifest["created"])
        planted = to_mark(self._manifest.get("data", {}).get("planted"))
        return TrackedRun(
            key=TRAIN,
            name=experiment.name,
            state=state,
            status=STATUS.get(state, "SCHEDULED"),
            steps=epochs,
            metric=experiment.eval.metric,
            tags=experiment_tags(experiment, planted, "train"),
            params={key: str(value) for key, value in keys.flatten(experiment.plain()).items()},
            started=round(1000 * began.timestamp()),
            folder=self._run,
        )
