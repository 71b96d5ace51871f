"""A trial of several workers, as Ray Tune runs it: submitted to the pool of groups, whose reports become its results.

torch is imported by a failure alone, so that the process is small and soon up.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from cdn_tune.config import override
from cdn_tune.distributed.group_coordinator import DIED, FAILED, LOST, REPORT, STOPPED, News
from cdn_tune.distributed.ray import RayActorError, ray, tune
from cdn_tune.errors import CdnTuneError, FolderHeld, NodeUnfit
from cdn_tune.training.reports import EpochReport
from cdn_tune.tuning.engine.door import Loss
from cdn_tune.tuning.engine.ray import results
from cdn_tune.tuning.layout import trial_folder

_WAIT_SECONDS = 5.0


class GroupTrial(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """A relay between a trial of Ray Tune's and the group of workers that trains it.

    Its process goes from trial to trial and holds nothing: the driver keeps the groups. The trial is submitted with the
    first step, for Ray Tune may set up two processes for a trial and use the one that comes first. Workers that are
    lost are reported as a result, so that the driver decides whether the trial is handed out again.
    """

    def setup(self, config: dict[str, Any], base: dict[str, Any], run: str, coordinator: Any) -> None:
        """Prepares the first trial.

        Args:
            config: The trial's number and parameters.
            base: The search's base experiment.
            run: The run folder, as `portable` names it.
            coordinator: The pool's `handle`.
        """
        self._base, self._run, self._coordinator = base, run, coordinator
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Prepares another trial; the former one has ended, or the driver has stopped it."""
        self._number, self._parameters = new_config[results.NUMBER], new_config[results.PARAMETERS]
        self._decisions = new_config[results.DECISIONS]
        self._ticket: int | None = None
        self._news: list[News] = []
        self._seconds, self._is_last = 0.0, False
        return True

    def step(self) -> dict[str, Any]:
        """Waits for the trial's next report."""
        try:
            if self._ticket is None:
                experiment = override(self._base, self._parameters, f"trial {self._number}")
                folder = str(trial_folder(Path(), self._number))
                work = {"experiment": experiment.plain(), "folder": folder, "decisions": self._decisions}
                self._ticket = ray.get(self._coordinator.submit.remote(self._number, work))
            while not self._news:
                self._news = ray.get(self._coordinator.next.remote(self._ticket, _WAIT_SECONDS))
            return self._result(*self._news.pop(0))
        except CdnTuneError as error:
            return self._failure(error)
        except RayActorError:  # no trial's fault
            return {results.HALT: DIED}

    def _result(self, kind: str, content: Any) -> dict[str, Any]:
        if kind == REPORT:
            epoch = EpochReport.read(content)
            self._is_last = epoch.is_last
            self._seconds += epoch.train_seconds + epoch.val_seconds
            return {results.REPORT: epoch, results.SECONDS: self._seconds}
        if kind == FAILED:
            return self._failure(pickle.loads(content))  # noqa: S301 - written by a worker of ours
        if kind == LOST:
            return {results.LOST: Loss(**content)}
        return {results.STOPPED: True} if kind == STOPPED and not self._is_last else {"done": True}

    def _failure(self, error: Exception) -> dict[str, Any]:
        """Returns the result that reports an error of the trial, or of where it ran."""
        if isinstance(error, NodeUnfit):
            return {results.LOST: Loss("unfit", error.reason, error.node)}
        if isinstance(error, FolderHeld):
            return {results.LOST: Loss("worker", str(error))}
        from cdn_tune.training.object_store.working_copy import working_copy
        from cdn_tune.tuning.engine.ray.trial import failed

        return dict(failed(error, trial_folder(working_copy(self._run), self._number)))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Saves nothing: the trial's folder holds its own checkpoint."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Loads nothing: a trial taken up again goes on from its folder."""
