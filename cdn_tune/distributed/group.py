"""A group of Ray Train workers that trains one trial and hands its reports over."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

from cdn_tune.config import Experiment, ResourcesConfig
from cdn_tune.distributed.ray import (
    Empty,
    FailureConfig,
    PlacementGroup,
    PlacementGroupCleanerCallback,
    Queue,
    RunConfig,
    ScalingConfig,
    TorchTrainer,
    get_current_placement_group,
    remove_placement_group,
)
from cdn_tune.errors import CdnTuneError, TrainingError
from cdn_tune.training.launch import train_in
from cdn_tune.training.report import EpochReport
from cdn_tune.training.world import this_world

_POLL_SECONDS = 0.1
_START_SECONDS = 60.0


class _Trainer(TorchTrainer):  # type: ignore[misc]  # Ray ships no types
    """A TorchTrainer without the detached cleaner actor.

    Ray's cleaner outlives the run (one actor of several hundred MB per trial) and needs the dashboard to do its work;
    `WorkerGroup.stop` removes the placement group itself.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


class WorkerGroup:
    """Several workers that train one trial together.

    Reports come through a queue rather than through Ray Train's own, which would forward rank 0's metrics only at
    checkpoints and only into a Tune function.

    Args:
        experiment: The trial.
        folder: The trial's folder, reachable from every worker's node.
        resources: Number of workers and what each occupies.
        max_failures: How often the group is restarted from its last checkpoint after a worker died.
    """

    def __init__(self, experiment: Experiment, folder: Path, resources: ResourcesConfig, max_failures: int = 0) -> None:
        self._queue = Queue(actor_options={"num_cpus": 0})
        self._placement: PlacementGroup | None = None
        self._error: BaseException | None = None
        bundle: dict[str, float] = {"CPU": resources.cpus_per_worker}
        if resources.gpus_per_worker:
            bundle["GPU"] = resources.gpus_per_worker
        self._trainer = _Trainer(
            _work,
            train_loop_config={
                "experiment": experiment.plain(),
                "folder": str(folder),
                "threads": resources.cpus_per_worker,
                "queue": self._queue,
            },
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.gpus_per_worker > 0,
                resources_per_worker=bundle,
            ),
            run_config=RunConfig(
                name="train",
                storage_path=str(folder / ".ray"),
                failure_config=FailureConfig(max_failures=max_failures),
            ),
        )
        self._thread = threading.Thread(target=self._fit, daemon=True, name="ray-train")
        self._thread.start()

    def next_report(self) -> dict[str, Any] | None:
        """Waits for the next report.

        Returns:
            An epoch's report as a plain dict, or None when training is over.

        Raises:
            TrainingError: If training failed, with its reason.
        """
        while True:
            alive = self._thread.is_alive()
            try:
                kind, content = self._queue.get(timeout=_POLL_SECONDS)
            except Empty:
                if alive:
                    continue
                if self._error is not None:
                    raise TrainingError(reason_of(self._error)) from self._error
                return None
            if kind == "placement":
                self._placement = content
            elif kind == "error":
                raise TrainingError(content)
            else:
                report: dict[str, Any] = content
                return report

    def stop(self) -> None:
        """Frees everything the group holds; safe to call at any time, and more than once."""
        waited = 0.0
        while self._placement is None and self._thread.is_alive() and waited < _START_SECONDS:
            with contextlib.suppress(Empty):
                kind, content = self._queue.get(timeout=_POLL_SECONDS)
                if kind == "placement":
                    self._placement = content
            waited += _POLL_SECONDS
        if self._placement is not None and self._thread.is_alive():
            remove_placement_group(self._placement)
        self._queue.shutdown(force=True)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # handed to next_report, in another thread
            self._error = error


def reason_of(error: BaseException) -> str:
    """Returns the innermost reason of an error that Ray has wrapped, in one line."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        return reason_of(next(iter(failures.values())))
    cause = getattr(error, "cause", None) or error.__cause__
    if isinstance(cause, BaseException):
        return reason_of(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _work(config: dict[str, Any]) -> None:
    """What every worker runs; its world is the process group that Ray Train has joined."""
    queue: Queue = config["queue"]
    world = this_world()
    if world.is_main:
        queue.put(("placement", get_current_placement_group()))

    def report(done: EpochReport) -> None:
        queue.put(("report", done.plain()))

    experiment = Experiment.model_validate(config["experiment"], strict=False)
    try:
        train_in(experiment, Path(config["folder"]), report, threads=config["threads"])
    except CdnTuneError as error:  # would fail again: told before Ray counts it as a failure and starts over
        queue.put(("error", str(error)))
        raise
